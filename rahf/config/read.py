"""Configs: a config file is Python returning a `Config`, frozen dataclasses that describe a run completely.

`load(path)` runs a config file, `to_json`/`from_json` save and restore; an unknown field is an error that
suggests the nearest name. The command line overrides any field (``--train.steps 10``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from rahf.config import critic, diffusion, limits, migrate, schema, stable_diffusion
from rahf.config.model import FamilyConfig
from rahf.config.schema import Config
from rahf.core import json_text, renamed
from rahf.core.errors import ConfigError
from rahf.core.files import read_regular_text
from rahf.core.names import suggest


def to_json(config: Config) -> str:
    """The config as indented JSON, fields in the order of the classes."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, cls: type = Config, where: str = "config") -> Any:
    """The inverse of `to_json`. Raises ConfigError for unknown fields, wrong kinds and numbers out of range."""
    try:
        tree = json_text.parse(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    config = from_dict(tree, cls, where)
    with _named(where):
        limits.check(config)
    return config


def read_saved(file: pathlib.Path) -> Config:
    """The config that a run has saved. Raises ConfigError: it cannot be read, or as `from_json`."""
    try:
        text = read_regular_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error})") from error
    return from_json(text, where=str(file))


def from_dict(tree: Any, cls: type, where: str) -> Any:
    """Builds a config dataclass from nested dicts. Missing fields keep their defaults.

    Raises:
      ConfigError: unknown field (with the nearest name) or a value of the wrong kind.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected fields of {cls.__name__}, found {tree!r:.80}")
    hints = typing.get_type_hints(cls)
    for name in tree:
        if name not in hints:
            raise ConfigError(f"{where}: unknown field {name!r}.{suggest(name, list(hints))}")
    return cls(**{name: _convert(tree[name], hints[name], f"{where}.{name}") for name in tree})


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is FamilyConfig:
        return _family(value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        several = isinstance(value, (list, tuple))
        kinds = [a for a in args if a is not type(None)]
        fitting = [a for a in kinds if (typing.get_origin(a) is tuple) == several]
        return _convert(value, (fitting or kinds)[0], where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r:.80} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[0]
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {value!r:.80}")
        return tuple(_convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where}: expected a number of reasonable size, found {value!r:.40}") from error
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r:.80}")


#: Where the configs of version 0 are now, by their name then.
_FORMER_NAMES = {
    **{f"{name}.py": f"critic/{name}.py" for name in (
        "baseline_clip_finetuned", "baseline_resnet50", "demo", "demo_augmented", "demo_quarter", "rehearsal",
        "rehearsal_finetune", "richhf18k_fast", "richhf18k_paper", "richhf18k_vitl",
    )},
    "demo_diffusion.py": "diffusion/demo.py",
}  # fmt: skip


def _family(tree: Any, where: str) -> FamilyConfig:
    """The config of a model family, by its field `family`; that of version 0 by `kind`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected the fields of a model, found {tree!r:.80}")
    if migrate.is_v0_model(tree):
        tree = migrate.model_from_v0(tree, where)
    name, classes = tree.get("family", "critic"), FamilyConfig.classes
    if not isinstance(name, str) or name not in classes:
        raise ConfigError(
            f"{where}.family: {name!r:.80} is not one of {', '.join(map(repr, sorted(classes)))}; a family of another "
            "package is known once that package has been imported"
        )
    return from_dict(tree, classes[name], where)


def find(path: str) -> pathlib.Path:
    """A config file on disk, or of the same name among the configs that come with rahf.

    Raises:
      ConfigError: neither exists; the message lists what comes with rahf.
    """
    file_path = pathlib.Path(path)
    if file_path.is_file():
        return file_path
    shipped = pathlib.Path(__file__).resolve().parent.parent / "configs"
    files = {file.relative_to(shipped).as_posix(): file for file in sorted(shipped.glob("*/[a-z]*.py"))}
    name = file_path.as_posix().removeprefix("configs/")
    former, name = name, _FORMER_NAMES.get(name, name)
    if name in files:
        if name != former != file_path.as_posix():  # "demo.py" alone names a config of today, too
            renamed.warn(path, f"configs/{name}")
        return files[name]
    if "/" not in name and len(alone := [file for known, file in files.items() if known.endswith(f"/{name}")]) == 1:
        return alone[0]
    names = [f"configs/{file}" for file in files]
    nearest = difflib.get_close_matches(file_path.name, [file.rsplit("/", 1)[-1] for file in files], n=1)
    if not nearest:
        raise ConfigError(f"no config file {path}.{suggest(path, names)}")
    # The file name decides; among files of one name in several folders, the likeness of the whole path does.
    same_name = [candidate for candidate in names if candidate.endswith("/" + nearest[0])]
    asked = f"configs/{file_path.name if file_path.is_absolute() else name}"
    best = max(same_name, key=lambda candidate: difflib.SequenceMatcher(None, asked, candidate).ratio())
    raise ConfigError(f"no config file {path}. Did you mean {best!r}?")


def load(path: str) -> Config:
    """Runs a config file and returns the `Config` that its `config()` returns.

    Args:
      path: a Python file, or the name of one that comes with rahf (``configs/critic/demo.py``).

    Raises:
      ConfigError: no such file, an unknown field, or no function `config`.
    """
    file = find(path)
    module_spec = importlib.util.spec_from_file_location("rahf_config_file", file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.config()
    except TypeError as error:
        raise ConfigError(f"{file}: {_with_suggestion(str(error))}") from error
    except AttributeError as error:
        raise ConfigError(f"{file}: must define config() -> rahf.config.Config ({error})") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{file}: config() returned {type(config).__name__}, expected rahf.config.Config")
    with _named(str(file)):
        limits.check(config)
    return config


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts the name of a file before the message of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _with_suggestion(message: str) -> str:
    """Adds the nearest field to Python's own 'unexpected keyword argument' message."""
    name = message.split("argument '")[-1].split("'")[0]
    modules = (schema, critic, diffusion, stable_diffusion)
    classes = [c for module in modules for c in vars(module).values() if dataclasses.is_dataclass(c)]
    owner = [c for c in classes if message.startswith(c.__name__ + ".") or message.startswith(c.__name__ + "(")]
    fields = [f.name for c in owner or classes for f in dataclasses.fields(c)]
    return message + "." + suggest(name, fields) if "unexpected keyword" in message else message
