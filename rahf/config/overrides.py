"""Config fields on the command line: ``--train.steps 10``. Every field is an option with its own help."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from rahf import config as config_lib
from rahf.config import Config, limits, migrate
from rahf.core.errors import ConfigError
from rahf.core.names import suggest


def parse(config_file: str, fields: Sequence[str]) -> Config:
    """The config of a file with fields replaced.

    Args:
      config_file: see `rahf.config.load`.
      fields: ``["--train.steps", "10", …]``; hyphens and underscores are the same; ``--help`` lists all.

    Raises:
      ConfigError: an unknown field (suggests the nearest), or a number that no run could use.
      SystemExit: a value of the wrong kind (code 2, explained on stderr), or ``--help`` (code 0).
    """
    base = config_lib.load(config_file)
    names = list(_names(base, ""))
    for field in fields:
        option = field.split("=", 1)[0]
        if option.startswith("--") and option != "--help":
            name = option[2:].replace("-", "_")
            if name not in names and name.replace(".no_", ".") not in names:
                raise ConfigError(f"unknown config field {option}.{_hint(name, names)}")
    config = tyro.cli(
        Config,
        default=base,
        args=list(fields),
        prog=f"rahf train {config_file}",
        description=Config.__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )
    limits.check(config)
    return config


def _hint(name: str, names: Sequence[str]) -> str:
    """What to write instead of an unknown name: an option of version 0 by its present name, else the nearest."""
    if name == "model.kind":
        return " The family of a model comes with the config file: choose another one"
    group, _, field = name.rpartition(".")
    present = f"model.{migrate.DIFFUSION_FIELDS.get(field)}"
    if group == "model.diffusion" and present in names:
        return f" It is --{present.replace('_', '-')} now"
    return suggest(name, names)


def _names(group: Any, prefix: str) -> Iterator[str]:
    """The names of all fields below a group, as in "train.steps"."""
    for field in dataclasses.fields(group):
        value, name = getattr(group, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _names(value, f"{name}.")
        else:
            yield name
