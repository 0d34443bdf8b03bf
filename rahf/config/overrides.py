"""Config fields on the command line: ``--train.steps 10``. Every field is an option with its own help."""

from __future__ import annotations

import dataclasses
from typing import Sequence

from rahf import config as config_lib
from rahf.config import Config
from rahf.core.errors import ConfigError
from rahf.core.names import suggest


def parse(config_file: str, fields: Sequence[str]) -> Config:
    """The config of a file with fields replaced.

    Args:
      config_file: see `rahf.config.load`.
      fields: ``["--train.steps", "10", …]``; hyphens and underscores are the same; ``--help`` lists all.

    Raises:
      ConfigError: an unknown field (suggests the nearest).
      SystemExit: a value of the wrong kind (code 2, explained on stderr), or ``--help`` (code 0).
    """
    import tyro

    base = config_lib.load(config_file)
    known = _names(base)
    for field in fields:
        name = field.split("=", 1)[0]
        if name.startswith("--") and name != "--help":
            plain = name[2:].replace("-", "_")
            if plain not in known and plain.replace(".no_", ".") not in known:
                raise ConfigError(f"unknown config field {name}.{suggest(plain, known)}")
    return tyro.cli(
        Config,
        default=base,
        args=list(fields),
        prog=f"rahf train {config_file}",
        description=Config.__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _names(config: Config) -> list[str]:
    def walk(value, prefix: str) -> list[str]:
        if not dataclasses.is_dataclass(value):
            return [prefix[:-1]]
        return [name for f in dataclasses.fields(value) for name in walk(getattr(value, f.name), f"{prefix}{f.name}.")]

    return walk(config, "")
