"""`rahf export` of a saliency model: one self-contained file, which `rahf.saliency.export.read` reads."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export
from rich.text import Text

from rahf import config as config_lib
from rahf.core import names, terminal, tree
from rahf.core.errors import ArgumentError, ExportError
from rahf.core.files import replacing
from rahf.core.version import __version__
from rahf.critic.export import archive, card
from rahf.critic.export.functions import without_locations
from rahf.critic.export.write import PLATFORMS, TOLERANCE, check_replaceable, without_paths
from rahf.critic.loading import is_exported
from rahf.saliency import from_run
from rahf.saliency.export import read
from rahf.saliency.predictor import Saliency, scaled_canvases

_EXPORTED = "export: this model is an exported file already; give the run directory it was made from"


class WrittenExport(NamedTuple):
    """The file, its size in bytes, the model's id, and the largest difference of log-densities to the checkpoint's.

    The difference is NaN where the file was not made for the devices of this machine.
    """

    file: pathlib.Path
    size: int
    model_id: str
    difference: float


def export_run(model: str | os.PathLike, file: str | os.PathLike, **options: Any) -> WrittenExport:
    """Exports a run; `options` of `write_export`. Raises as `rahf.saliency.from_run.load` and `write_export`."""
    check_replaceable(file, options.get("force", False))
    if is_exported(model):
        raise ArgumentError(_EXPORTED)
    written = write_export(from_run.load(model), file, **options)
    line = (
        f"{written.file}: {written.size / 1e6:.1f} MB, model {written.model_id}; largest difference of log-densities "
        f"to the checkpoint {written.difference:.1e}"
    )
    terminal.console().print(Text(names.one_line(line)), soft_wrap=True)
    return written


def write_export(
    model: Saliency,
    file: str | os.PathLike,
    *,
    bf16: bool = False,
    weight_license: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    about: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> WrittenExport:
    """Writes a model as one file; it takes its name after its outputs were compared with those of the model.

    Args:
      model: loaded from a run directory.
      file: the file; an existing export is replaced, and only by a complete one.
      bf16: store weights as bfloat16, half as large; the functions widen them to float32.
      weight_license: license of the weights; None: the recorded one.
      platforms: JAX's names of the platforms that the file shall run on.
      about: what its author says of it, for the model card, Markdown.
      name: of the model; None: that of the run.
      force: replace any file.

    Raises:
      ExportError: the file cannot be written or is something else, or gives other numbers than the model.
      ArgumentError: the model is an exported file itself, or an unknown platform.
    """
    if not model.center_biased:
        raise ArgumentError(f"export: {model.name} is no saliency network; readouts of a pipeline are not exported")
    if model.graphdef is None:
        raise ArgumentError(_EXPORTED)
    unknown = sorted(set(platforms) - {"cpu", "cuda", "rocm", "tpu"})
    if unknown or not platforms:
        raise ArgumentError(
            f"platforms: expected some of {', '.join(PLATFORMS)}, found {', '.join(platforms) or 'none'}"
        )
    check_replaceable(file, force)
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    dtype = jnp.bfloat16 if bf16 else np.float32
    weights = {path: np.ascontiguousarray(leaf, dtype) for path, leaf in tree.flatten(model.params).items()}
    origin = names.one_line(model.model_id + ("-bf16" if bf16 else ""))
    license = names.one_line(weight_license or model.weight_license)
    parts = _functions(model, weights, tuple(platforms))
    parts[read.WEIGHTS] = safetensors.numpy.save(weights, {"format": "rahf"})
    parts[read.CONFIG] = config_lib.to_json(without_paths(model.config)).encode()
    parts["README.md"] = model_card(model, name or model.name, origin, license, about).encode()
    parts["LICENSES.md"] = card.license_text(license).encode()
    manifest = {
        "kind": read.KIND,
        "rahf": __version__,
        "jax": jax.__version__,
        "name": names.one_line(name or model.name),
        "step": model.step,
        "model_id": origin,
        "weight_license": license,
        "platforms": list(platforms),
        "weights": {
            "dtype": jnp.dtype(dtype).name,
            "count": sum(leaf.size for leaf in weights.values()),
            "sha256_with_id": read.seal(origin, parts[read.CONFIG], parts[read.WEIGHTS]),
        },
        "vjp_order": 1,
    }
    with replacing(file) as unfinished:
        archive.write_archive(unfinished, parts, manifest)
        platform = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        difference = float("nan")
        if platform in platforms:
            exported = read.model_of_archive(file.name, *archive.read_archive(unfinished))
            difference = _difference(model, exported)
            if not difference <= (np.inf if bf16 else 10 * TOLERANCE):
                raise ExportError(
                    f"{file.name}: gives other numbers than the model (difference {difference:.2g}); nothing was "
                    "written. This is an error of rahf or of this version of jax; please report it"
                )
    return WrittenExport(file, file.stat().st_size, origin, difference)


def _functions(model: Saliency, weights: dict[str, np.ndarray], platforms: tuple[str, ...]) -> dict[str, bytes]:
    """Serialised functions of every canvas, with their derivative in the pixels; the batch size is symbolic."""
    (batch,) = jax_export.symbolic_shape("b")
    shapes = tree.unflatten({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in weights.items()})
    parts = {}
    with without_locations():
        for name, function, canvas in zip(read.function_names(model.config), model.functions, model.canvases):

            def widened(params, image, frame, bias, function=function):
                return function(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), image, frame, bias)

            arguments = (
                jax.ShapeDtypeStruct((batch, *canvas, 3), np.float32),
                jax.ShapeDtypeStruct((batch, 4), np.int32),
                jax.ShapeDtypeStruct((batch,), np.float32),
            )
            exported = jax_export.export(jax.jit(widened), platforms=platforms)(shapes, *arguments)
            parts[f"functions/{name}.jax_export"] = bytes(exported.serialize(vjp_order=1))
    return parts


def _difference(model: Saliency, exported: Saliency) -> float:
    """Largest difference of log-densities on noise of both orientations."""
    stream = np.random.default_rng(0)
    pictures = [stream.integers(0, 256, (*canvas, 3), np.uint8) for canvas in model.canvases]
    pairs = zip(model(pictures), exported(pictures))
    return max(float(np.abs(one.cells - other.cells).max()) for one, other in pairs)


def model_card(model: Saliency, name: str, model_id: str, license: str, about: str | None) -> str:
    """The model card, Markdown."""
    sizes = scaled_canvases(model.config.model, model.canvases[0])[::-1]
    canvas = f"canvas{'es' * (len(sizes) > 1)} {' and '.join(f'{width} x {height}' for height, width in sizes)}"
    data = ", ".join(pathlib.PurePath(path).name for path in model.config.data.paths)
    lines = [
        f"# {names.one_line(name)}: where people look",
        "",
        "Given a picture, this model gives the density of where people look in the first seconds of free viewing: a "
        "log-density whose exponential sums to 1 over the picture's pixels.",
        "",
        "```python",
        "import rahf",
        "",
        'rahf.load("FILE.rahf")("photo.jpg")[0].log_density',
        "```",
        "",
        *(["## About", "", about.strip(), ""] if about else []),
        "## Facts",
        "",
        f"* model {model_id}, {tree.count(model.params) / 1e6:.2f} million parameters",
        f"* tower {model.config.model.tower}, {canvas}, cells of {model.config.model.stride} pixels",
        f"* trained on {names.one_line(data)}, step {model.step}",
        f"* licence of the weights: {license}",
    ]
    return "\n".join(lines) + "\n"
