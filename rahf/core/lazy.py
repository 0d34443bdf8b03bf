"""Public names of packages, imported when they are first used (PEP 562).

If packages imported them at once, `import rahf` would load JAX, and reading an exported file would need Flax.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def attach(
    package: str, places: Mapping[str, str], packages: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The functions `__getattr__` and `__dir__` of a package, and its list `__all__`.

    Args:
      package: its `__name__`.
      places: the module in which each public name is defined.
      packages: sub-packages that need no import of their own, as in ``import rahf; rahf.steer.repair(…)``.
    """

    def getattr_(name: str) -> Any:
        if name in packages:
            return importlib.import_module(f"{package}.{name}")
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places, *packages})

    return getattr_, dir_, sorted(places)
