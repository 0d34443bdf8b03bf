"""Published checkpoints → our parameters, names and shapes checked strictly; nothing is left random silently.

`vit`, `siglip`, `dinov2` are image towers, `t5` is the fusion stack, `richhf_torch` the whole public network.
`start` puts towers into freshly initialised parameters.
"""

from __future__ import annotations

from typing import Any

from rahf.config import ModelConfig
from rahf.models import functional
from rahf.pretrained import dinov2, siglip, t5, vit
from rahf.pretrained.source import PretrainedError, Source, locate, read_config
from rahf.pretrained.towers import Published

__all__ = ["PretrainedError", "Published", "Source", "locate", "load_vision", "published_vision", "start"]

_FAMILIES = {kind: module for module in (vit, siglip, dinov2) for kind in module.FAMILY.model_types}


def _family(source: Source) -> Any:
    tree = read_config(source, tuple(_FAMILIES))
    return _FAMILIES[tree["model_type"]]


def published_vision(name: str | Source, revision: str | None = None) -> Published:
    """Sizes and normalisation of a published image tower of any supported family."""
    source = locate(name, revision)
    return _family(source).published(source)


def load_vision(
    name: str | Source, config: ModelConfig, revision: str | None = None, interpolation: str = "bicubic"
) -> functional.Params:
    """Loads an image tower of any supported family for `config.vit` and `config.image_size`.

    Raises:
      PretrainedError: as `vit.load`; or the tower was trained with another normalisation than the
        configuration's `image_mean` and `image_std`.
    """
    source = locate(name, revision)
    family = _family(source)
    found = family.published(source)
    for field in ("image_mean", "image_std"):
        asked, trained = getattr(config, field), getattr(found, field)
        if max(abs(a - b) for a, b in zip(asked, trained)) > 1e-3:
            raise PretrainedError(
                f"{source.name}: was trained with {field} {trained}, model.{field} is {asked}"
            )
    return family.load(source, config.vit, config.image_size, interpolation=interpolation)


def start(
    params: functional.Params,
    config: ModelConfig,
    *,
    vision: str | Source | None = None,
    text: str | Source | None = None,
    vision_revision: str | None = None,
    text_revision: str | None = None,
) -> tuple[functional.Params, dict[str, dict[str, str | None]]]:
    """Replaces the towers of freshly initialised parameters by published ones.

    Args:
      params: of `rahf.models.rahf.Rahf(config)`; not changed.
      config: must have the towers' sizes.
      vision: folder or hub id of an image tower, None to keep the fresh one.
      text: the same for a T5.

    Returns:
      The parameters, and what to write down: name and revision of each tower.

    Raises:
      PretrainedError: as the loaders; nothing is replaced by half.
    """
    made, record = dict(params), {}
    if vision is not None:
        source = locate(vision, vision_revision)
        made["vit"], record["vision"] = load_vision(source, config), source.record()
    if text is not None:
        source = locate(text, text_revision)
        made.update(t5.load(source, config.t5))
        record["text"] = source.record()
    lines = functional.differences(made, params)
    if lines:
        raise PretrainedError("the towers do not fit the network:\n  " + "\n  ".join(lines))
    return made, record
