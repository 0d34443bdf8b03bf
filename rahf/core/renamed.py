"""Functions, classes and arguments with a new name: the old one works for one version, with a DeprecationWarning."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that `old` is now called `new`; `stacklevel` 3 names the caller of the function that calls this one."""
    warnings.warn(f"{old} is now called {new}; the old name goes in the next version", DeprecationWarning, stacklevel)


def arguments(**names: str) -> Callable[[_Function], _Function]:
    """A decorator of a function whose keyword arguments were renamed.

    Args:
      names: the new name for each old one.

    Returns:
      The decorator. The function raises TypeError where an argument is given by both of its names.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}: {old} is the old name of {new}; give one of them")
                warn(f"{function.__qualname__}: argument {old}", new)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def moved(
    module: str, places: Mapping[str, str], otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a module whose functions or classes moved to another one, perhaps under other names.

    The new place is imported when it is asked for, because it may lie on a higher floor.

    Args:
      module: its `__name__`.
      places: "package.module:name" for each old name.
      otherwise: the `__getattr__` for all other names; None: there are none.
    """

    def getattr_(name: str) -> Any:
        if name not in places and otherwise is not None:
            return otherwise(name)
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, new = places[name].split(":")
        warn(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return getattr_
