"""Published checkpoints → our parameters, names and shapes checked strictly; nothing is left random silently.

`vit`, `siglip`, `dinov2` are image towers, `t5` is the fusion stack, `richhf_torch` the whole public network.
`load_towers` reads towers for a network, `start` puts them into freshly initialised parameters.
"""

from __future__ import annotations

from typing import Any

from rahf.config import ClipBaselineConfig, CriticConfig, FamilyConfig
from rahf.core import licenses
from rahf.core.errors import PretrainedError
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import clip, dinov2, siglip, t5, towers, vit
from rahf.pretrained.source import Source, check_colours, locate, read_config
from rahf.pretrained.towers import Published

__all__ = [
    "PretrainedError",
    "Published",
    "Source",
    "load_towers",
    "load_vision",
    "locate",
    "published_vision",
    "shares",
    "start",
]

_FAMILIES = {kind: module.FAMILY for module in (vit, siglip, dinov2, clip) for kind in module.FAMILY.model_types}


def _family(source: Source) -> towers.Family:
    tree = read_config(source, tuple(_FAMILIES))
    return _FAMILIES[tree["model_type"]]


def published_vision(name: str | Source, revision: str | None = None) -> Published:
    """Sizes and normalisation of a published image tower of any supported family."""
    source = locate(name, revision)
    return towers.published(_family(source), source)


def load_vision(
    name: str | Source, config: FamilyConfig, revision: str | None = None, interpolation: str = "bicubic"
) -> functional.Params:
    """Loads an image tower of any supported family for `config.vit` and `config.image_size`.

    Raises:
      PretrainedError: as `vit.load`; or the tower was trained with another normalisation than the
        configuration's `image_mean` and `image_std`.
    """
    source = locate(name, revision)
    family = _family(source)
    check_colours(source, towers.published(family, source), config)
    return towers.load(family, source, config.vit, config.image_size, interpolation=interpolation)


def load_towers(
    config: FamilyConfig,
    *,
    vision: str | Source | None = None,
    text: str | Source | None = None,
    vision_revision: str | None = None,
    text_revision: str | None = None,
) -> tuple[functional.Params, dict[str, dict[str, Any]]]:
    """Reads published towers for a network.

    Args:
      config: must have the towers' sizes.
      vision: folder or hub id of an image tower, None for none. For the baselines of kind "resnet" and "clip"
        it is the whole network but its trained heads.
      text: the same for a T5.

    Returns:
      Their parameters on the host (`vit`; `embedding`, `encoder`, `decoder` and perhaps `output`, as in
      `rahf.critic.networks.multi_head.Rahf`), and what to write down of each tower: name, revision, licence, parts, number
      of parameters, and how position embeddings were interpolated (None if they were not).

    Raises:
      PretrainedError: as the loaders; or the towers do not fit the network.
    """
    made: functional.Params = {}
    record: dict[str, dict[str, Any]] = {}
    if not isinstance(config, CriticConfig):
        return _load_baseline(config, vision, text, vision_revision)
    if vision:
        source = locate(vision, vision_revision)
        tower = {"vit": load_vision(source, config)}
        record["vision"] = _record(source, tower) | {"positions": _moved(source, config)}
        made |= tower
    if text:
        source = locate(text, text_revision)
        tower = t5.load(source, config.t5)
        record["text"] = _record(source, tower)
        made |= tower
    _, expected = functional.abstract(build.build(config))
    lines = functional.differences(made, {name: expected[name] for name in expected if name in made})
    if lines:
        raise PretrainedError("the towers do not fit the network:\n  " + "\n  ".join(lines))
    return made, record


def _load_baseline(
    config: FamilyConfig, vision: str | Source | None, text: str | Source | None, revision: str | None
) -> tuple[functional.Params, dict[str, dict[str, Any]]]:
    from rahf.critic.published import baselines  # which write model directories, too

    if text or not vision:
        raise PretrainedError(f"a {config.family} network starts from start.vision alone; it has no T5")
    params, source = baselines.load(config, vision, revision)
    moved = _moved(source, config) if isinstance(config, ClipBaselineConfig) else None
    return params, {"vision": _record(source, params) | {"positions": moved}}


def _record(source: Source, tower: functional.Params) -> dict[str, Any]:
    return source.record() | {
        "license": licenses.folder_license(source.folder),
        "parts": sorted(tower),
        "parameters": functional.count(tower),
    }


def _moved(source: Source, config: FamilyConfig) -> dict[str, Any] | None:
    """From which grid of patches the position embeddings were interpolated to which."""
    patch = config.vit.patch_size
    grids = published_vision(source).image_size // patch, config.image_size // patch
    if grids[0] == grids[1]:
        return None
    return {"from": [grids[0]] * 2, "to": [grids[1]] * 2, "interpolation": "bicubic"}


def start(
    params: functional.Params, config: FamilyConfig, **towers: str | Source | None
) -> tuple[functional.Params, dict[str, Any]]:
    """Replaces the towers of freshly initialised parameters by published ones.

    Args:
      params: of `rahf.critic.networks.multi_head.Rahf(config)`; not changed.
      config, towers: as in `load_towers`.

    Returns:
      The parameters, and the record of `load_towers` with the paths of what was `taken` and what is still
      `random`.

    Raises:
      PretrainedError: as `load_towers`; nothing is replaced by half.
    """
    loaded, record = load_towers(config, **towers)
    made = params | loaded
    lines = functional.differences(made, params)
    if lines:
        raise PretrainedError("the parameters are not of the configured network:\n  " + "\n  ".join(lines))
    return made, record | shares(params, loaded)


def shares(params: functional.Params, loaded: functional.Params) -> dict[str, list[str]]:
    """Paths of parameters that were `taken` from elsewhere and of those left `random`."""
    taken = functional.flatten(loaded)
    return {"taken": list(taken), "random": [path for path in functional.flatten(params) if path not in taken]}
