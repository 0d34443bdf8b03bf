"""Configs of earlier versions → the present ones, by an explicit rule for each field that moved.

Version 0 had one `ModelConfig` for all families, told apart by `kind`, with the fields of all of them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from rahf.config.critic import ClipBaselineConfig, CriticConfig, ResNetBaselineConfig
from rahf.config.diffusion import PixelDiffusionConfig
from rahf.config.model import FamilyConfig
from rahf.core.errors import ConfigError
from rahf.core.names import suggest

#: The family of each `kind` of version 0.
FAMILIES_OF_KINDS: dict[str, type[FamilyConfig]] = {
    "rahf": CriticConfig,
    "resnet": ResNetBaselineConfig,
    "clip": ClipBaselineConfig,
    "diffusion": PixelDiffusionConfig,
}
#: Fields of version 0's `model.diffusion`, now fields of `PixelDiffusionConfig`.
DIFFUSION_FIELDS = {
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
    "patch": "patch_size",
    "attention_from": "attention_from",
    "heads": "num_attention_heads",
    "groups": "norm_num_groups",
    "times": "num_train_timesteps",
    "schedule": "beta_schedule",
    "predicts": "prediction_type",
    "prompt_dropout": "prompt_dropout",
}
_DIFFUSION_VALUES = {
    "schedule": {"cosine": "squaredcos_cap_v2", "linear": "linear"},
    "predicts": {"v": "v_prediction", "eps": "epsilon", "x0": "sample"},
}
_V0_FIELDS = (
    {
        *(field.name for cls in FAMILIES_OF_KINDS.values() for field in dataclasses.fields(cls)),
        "kind",
        "diffusion",
    }
    - {"family"}
    - {*DIFFUSION_FIELDS.values()}
)


def is_v0_model(tree: Mapping[str, Any]) -> bool:
    """Whether the fields of a `model` were written by version 0: they name a kind and no family."""
    return "family" not in tree and ("kind" in tree or "diffusion" in tree)


def model_from_v0(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of version 0's `model` → those of its family, with `family`. Fields of other families are left out.

    Raises:
      ConfigError: a field or kind that version 0 did not have.
    """
    for name in tree:
        if name not in _V0_FIELDS:
            raise ConfigError(f"{where}: unknown field {name!r}.{suggest(name, sorted(_V0_FIELDS))}")
    kind = tree.get("kind", "rahf")
    if not isinstance(kind, str) or kind not in FAMILIES_OF_KINDS:
        raise ConfigError(f"{where}.kind: {kind!r:.80} is not one of {', '.join(map(repr, FAMILIES_OF_KINDS))}")
    cls = FAMILIES_OF_KINDS[kind]
    fields = {name: value for name, value in tree.items() if name in {f.name for f in dataclasses.fields(cls)}}
    if cls is PixelDiffusionConfig:
        former = tree.get("diffusion") or {}
        if not isinstance(former, Mapping):
            raise ConfigError(f"{where}.diffusion: expected fields, found {former!r:.80}")
        for name, value in former.items():
            if name not in DIFFUSION_FIELDS:
                raise ConfigError(f"{where}.diffusion: unknown field {name!r}.{suggest(name, list(DIFFUSION_FIELDS))}")
            renamed = _DIFFUSION_VALUES.get(name, {})
            fields[DIFFUSION_FIELDS[name]] = renamed.get(value, value) if isinstance(value, str) else value
    return {"family": cls.family, **fields}


def diffusion_config(**fields: Any) -> dict[str, Any]:
    """Version 0's `DiffusionConfig(…)`: the fields of `model.diffusion`, for `model_config`."""
    _warn("DiffusionConfig", "rahf.config.PixelDiffusionConfig")
    return fields


def model_config(**fields: Any) -> FamilyConfig:
    """Version 0's `ModelConfig(kind=…, …)`: the config of the family that `kind` names."""
    kind = fields.get("kind", "rahf")
    cls = FAMILIES_OF_KINDS.get(kind, CriticConfig)
    _warn("ModelConfig", f"rahf.config.{cls.__name__}")
    for name in fields:
        if name not in _V0_FIELDS:
            raise TypeError(f"ModelConfig.__init__() got an unexpected keyword argument {name!r}")
    return cls(**model_from_v0(fields, "ModelConfig"))


def _warn(old: str, new: str) -> None:
    warnings.warn(f"rahf.config.{old} belongs to version 0 and will go; use {new}", DeprecationWarning, stacklevel=3)
