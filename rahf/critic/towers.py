"""Which published weights a critic starts from: image tower and T5, or the backbone of a baseline."""

from __future__ import annotations

import os
from typing import Any

from rahf.config import ClipBaselineConfig, CriticConfig, FamilyConfig, ResNetBaselineConfig
from rahf.core import licenses
from rahf.core.errors import PretrainedError
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import clip, convnext, efficientnet, resnet, source, t5, vision
from rahf.pretrained.source import WeightsSource


def load_towers(
    config: FamilyConfig,
    *,
    vision: str | os.PathLike | WeightsSource | None = None,
    text: str | os.PathLike | WeightsSource | None = None,
    vision_revision: str | None = None,
    text_revision: str | None = None,
) -> tuple[functional.Params, dict[str, dict[str, Any]]]:
    """Reads published towers for a network.

    Args:
      config: must have the towers' sizes.
      vision: folder or hub id of an image tower, None for none. For a baseline it is the network but for its
        trained heads.
      text: folder or hub id of a T5, None for none.
      vision_revision, text_revision: branch, tag or commit of a hub id.

    Returns:
      Their parameters on the host (`vit`; `embedding`, `encoder`, `decoder` and perhaps `output`, as in
      `rahf.critic.networks.multi_head.Rahf`), and for `"vision"` and `"text"` what to write down of each: name,
      revision, license, parts, number of parameters, and how position embeddings were interpolated (None if they
      were not).

    Raises:
      PretrainedError: as the loaders; or the towers do not fit the network.
    """
    if not isinstance(config, CriticConfig):
        if text or not vision:
            raise PretrainedError(f"a {config.family} network starts from start.vision alone; it has no T5")
        params, weights = load_backbone(config, vision, vision_revision)
        positions = _interpolated(weights, config) if isinstance(config, ClipBaselineConfig) else None
        return params, {"vision": _record(weights, params) | {"positions": positions}}
    params: functional.Params = {}
    record: dict[str, dict[str, Any]] = {}
    if vision:
        tower, record["vision"] = load_vision_part(config, vision, vision_revision)
        params |= tower
    if text:
        weights = source.locate(text, text_revision)
        tower = t5.load_t5(weights, config.t5)
        record["text"] = _record(weights, tower)
        params |= tower
    _, expected = functional.abstract(build.build(config))
    lines = functional.parameter_differences(params, {name: expected[name] for name in expected if name in params})
    if lines:
        raise PretrainedError("the towers do not fit the network:\n  " + "\n  ".join(lines))
    return params, record


def _convolutional_tower(
    config: CriticConfig, name: str | os.PathLike | WeightsSource, revision: str | None
) -> tuple[functional.Params, dict[str, Any]]:
    """Reads a tower that convolves; its parameters as `tower`, and what to write down of it."""
    if config.tower == "efficientnet":
        if revision is not None:
            raise PretrainedError(f"{name}: a revision ({revision}) has a meaning for hub ids only, not for packages")
        weights = efficientnet.locate_efficientnet(name)
        published = efficientnet.published_efficientnet(weights)
        params = efficientnet.load_efficientnet(weights, config.efficientnet)
    elif config.tower == "resnet":
        weights = resnet.locate_resnet(name, revision)
        published, params = resnet.published_resnet(weights), resnet.load_resnet(weights, config.resnet)
    else:
        weights = source.locate(name, revision)
        published, params = convnext.published_convnext(weights), convnext.load_convnext(weights, config.convnext)
    source.check_normalisation(weights, published, config)
    tower = {"tower": params}
    record = _record(weights, tower) | {"positions": None}
    if config.tower == "efficientnet" and efficientnet.is_package(weights.name):
        record["license"] = efficientnet.LICENSE
    return tower, record


def load_vision_part(
    config: FamilyConfig, name: str | os.PathLike | WeightsSource, revision: str | None = None
) -> tuple[functional.Params, dict[str, Any]]:
    """Reads the image tower that `config.tower` names.

    Args:
      config: of any family with the fields `tower`, `vit`, `efficientnet`, `resnet`, `convnext`, `image_size` and the
        normalisation of pixels.

    Returns:
      Its parameters as `vit` or `tower`, and what to write down of it.

    Raises:
      PretrainedError: as `load_towers`.
    """
    if config.tower != "vit":
        return _convolutional_tower(config, name, revision)
    weights = source.locate(name, revision)
    tower = {"vit": load_image_tower(weights, config)}
    return tower, _record(weights, tower) | {"positions": _interpolated(weights, config)}


def load_image_tower(
    name: str | os.PathLike | WeightsSource, config: FamilyConfig, revision: str | None = None
) -> functional.Params:
    """Loads an image tower of any supported family for `config.vit` and `config.image_size`.

    Raises:
      PretrainedError: as `rahf.pretrained.towers.load_tower`; or the tower was trained with another normalisation
        than the configuration's `image_mean` and `image_std`.
    """
    weights = source.locate(name, revision)
    source.check_normalisation(weights, vision.published_vision(weights), config)
    return vision.load_vision(weights, config.vit, config.image_size)


def load_backbone(
    config: FamilyConfig, name: str | os.PathLike | WeightsSource, revision: str | None = None
) -> tuple[functional.Params, WeightsSource]:
    """Reads the published part of a baseline.

    Args:
      config: of a baseline, with the sizes and the normalisation of the checkpoint.
      name: folder or hub id; of a ResNet also a file of torchvision's.
      revision: branch, tag or commit of a hub id.

    Returns:
      Parameters on the host: `resnet`, or all of CLIP but trained scores; and where they lie.

    Raises:
      PretrainedError: as the loaders; or another normalisation of pixels than the configured one.
    """
    if isinstance(config, ResNetBaselineConfig):
        weights = resnet.locate_resnet(name, revision)
        source.check_normalisation(weights, resnet.published_resnet(weights), config)
        return {"resnet": resnet.load_resnet(weights, config.resnet)}, weights
    weights = source.locate(name, revision)
    params = clip.load_clip(weights, config.vit, config.clip.text, config.clip.width, config.image_size)
    source.check_normalisation(weights, clip.published_clip(weights).vision, config)
    return params, weights


def _record(weights: WeightsSource, params: functional.Params) -> dict[str, Any]:
    return weights.record() | {
        "license": licenses.folder_license(weights.folder),
        "parts": sorted(params),
        "parameters": functional.count(params),
    }


def _interpolated(weights: WeightsSource, config: FamilyConfig) -> dict[str, Any] | None:
    """From which grid of patches the position embeddings were interpolated to which; None if they were not."""
    patch, published = config.vit.patch_size, vision.published_vision(weights)
    grids = published.image_size // patch, config.image_size // patch
    if grids[0] == grids[1] or config.vit.rope_theta:  # rotary positions fit any grid
        return None
    interpolation = "antialiased bilinear" if published.antialias else "bicubic"
    return {"from": [grids[0]] * 2, "to": [grids[1]] * 2, "interpolation": interpolation}
