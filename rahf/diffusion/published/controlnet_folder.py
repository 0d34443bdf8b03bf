"""A ControlNet in the layout of `diffusers`: one folder with `config.json` and safetensors."""

from __future__ import annotations

import json
import os
import pathlib

import jax
from safetensors.numpy import save_file

from rahf.config import ControlNetConfig
from rahf.core import licenses
from rahf.core.errors import ConfigError, PretrainedError
from rahf.core.files import replacing_folder
from rahf.core.names import one_line
from rahf.core.tree import Params, flatten
from rahf.diffusion import weights
from rahf.diffusion.controlnet import ControlNet, Network
from rahf.diffusion.published import configs
from rahf.diffusion.published.export_folder import controlnet_config
from rahf.nn import functional
from rahf.pretrained import files, source, strict
from rahf.training.model_folder import check_free

_STEM = "diffusion_pytorch_model"


def load_controlnet(
    name: str | os.PathLike, *, license: str | None = None, revision: str | None = None, variant: str | None = None
) -> ControlNet:
    """Reads a ControlNet that `diffusers` or `save_controlnet` wrote. Every tensor must fit by name and shape.

    Args:
      name: folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, or a hub id.
      license: of the weights, as the user states it; None: what the model card states, else "unknown".
      revision: branch, tag or commit of a hub id.
      variant: of the weights, such as "fp16"; None: full precision, else fp16.

    Raises:
      PretrainedError: no such folder; a network of another kind (names the field); tensors that are missing, extra,
        misshapen or not finite (lists them).
    """
    variants = ("", "fp16") if variant is None else (variant,)
    located = _locate(name, revision, variants)
    file = located.folder / "config.json"
    if not file.is_file():
        names = ", ".join(sorted(p.name for p in located.folder.iterdir())[:8]) or "nothing"
        raise PretrainedError(
            f"{located.folder}: no ControlNet: expected config.json and {_STEM}.safetensors, found {names}"
        )
    config = configs.controlnet(source.read_json(file), str(file))
    params = _params(files.open_stem(located.folder, _STEM, _STEM, variants), config, located.folder)
    license = license or licenses.folder_license(located.folder)
    licenses.log_export_licenses(located.name, license)
    return ControlNet(config, params, located.name, license)


def save_controlnet(controlnet: ControlNet, folder: str | os.PathLike) -> pathlib.Path:
    """Writes a ControlNet for ``ControlNetModel.from_pretrained(folder)`` and `load_controlnet`.

    The folder appears complete or not at all. Its model card states the license of the weights.

    Raises:
      PretrainedError: `folder` exists and is not empty.
    """
    target = check_free(folder)
    layout = weights.controlnet_pointwise(controlnet.config.unet.use_linear_projection)
    params = flatten(jax.device_get(controlnet.params))
    tensors = {weights.tensor_name(path): weights.to_stored(path, value, layout) for path, value in params.items()}
    with replacing_folder(target) as unfinished:
        save_file(tensors, unfinished / f"{_STEM}.safetensors", metadata={"format": "pt"})
        tree = {**controlnet_config(controlnet.config), "_diffusers_version": "0.35.0"}
        (unfinished / "config.json").write_text(json.dumps(tree, indent=2) + "\n")
        # Quoted: the text of a license may hold what YAML reads otherwise.
        license = json.dumps(one_line(controlnet.license).replace('"', "'"))
        (unfinished / "README.md").write_text(f"---\nlicense: {license}\n---\nA ControlNet, written by rahf.\n")
    return target


def _locate(name: str | os.PathLike, revision: str | None, variants: tuple[str, ...]) -> source.WeightsSource:
    """The folder, or the download of the config and of the first variant of the weights that there is."""
    if pathlib.Path(name).is_dir():
        return source.locate(name, revision)
    located = source.locate(name, revision, ("config.json", "README.md"), "the folder of a ControlNet of diffusers")
    for variant in variants:
        stem = f"{_STEM}.{variant}" if variant else _STEM
        for ending in ("safetensors", "bin"):
            patterns = f"{stem}.{ending}", f"{stem}-*-of-*.{ending}"
            source.locate(name, located.revision, only=(*patterns, f"{_STEM}.*index*.json"))
            if any(True for pattern in patterns for _ in located.folder.glob(pattern)):
                return located
    return located


def _params(tensors: dict[str, files.StoredTensor], config: ControlNetConfig, folder: pathlib.Path) -> Params:
    try:
        _, shapes = functional.abstract(Network(config, "float32", "auto").build)
    except ConfigError as error:
        raise PretrainedError(f"{folder}: its config contradicts itself: {error}") from error
    taker = strict.Taker(tensors, str(folder))
    params = weights.take(taker, shapes, weights.controlnet_pointwise(config.unet.use_linear_projection))
    taker.finish()
    return params
