"""`rahf export`: a trained model → one self-contained file (`rahf.critic.export.read` reads it).

The functions are StableHLO of `jax.export` with a symbolic batch size, for several kinds of devices at once, with
their derivative; the weights are arguments of the functions, not constants in them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from rich.console import Console

import rahf
from rahf import config as config_lib
from rahf.core import tree
from rahf.core.batch import Prediction
from rahf.core.errors import ArgumentError, ExportError
from rahf.core.files import replacing
from rahf.critic import families, loading, provenance
from rahf.critic.critic import Critic
from rahf.critic.export import archive
from rahf.critic.export import card as model_card
from rahf.critic.export import functions as export_functions
from rahf.critic.export import read as exported
from rahf.text import vocabulary
from rahf.text.prompts import PromptWarning

#: One file serves all of them.
PLATFORMS = ("cpu", "cuda", "tpu")
#: Largest difference to the checkpoint's outputs that a float32 export may have.
TOLERANCE = 1e-5
_HALF_TOLERANCE = 0.05  # of networks that compute in bfloat16: 8 bits of precision, other fusions


class Exported(NamedTuple):
    """What was written: the file, its size in bytes, and the largest difference to the checkpoint's outputs."""

    file: pathlib.Path
    size: int
    difference: float


def run(
    model: str | os.PathLike, file: str | os.PathLike, *, console: Console | None = None, **options: Any
) -> Exported:
    """Loads a model, exports it with its evaluation's metrics if there are any, and says what came of it.

    Args:
      model: run directory or checkpoint directory.
      file: as in `export`.
      console: where the summary goes; None: stdout.
      options: of `export`.

    Raises:
      As `rahf.load` and `export`.
    """
    console = console or Console(highlight=False)
    critic = loading.load(model)
    done = export(critic, file, metrics=_metrics(pathlib.Path(model), critic), **options)
    known = exported.load(done.file).provenance
    checked = f"largest difference to the checkpoint {done.difference:.1e}"
    if done.difference != done.difference:
        checked = "not run here, since it was not made for the devices of this machine"
    console.print(f"{done.file}: {done.size / 1e6:.1f} MB, model {known.model_id}; {checked}", soft_wrap=True)
    console.print(f"weights: {known.weight_licence}", soft_wrap=True)
    if known.quantiles is None:
        whole = all(families.outputs(critic.config.model).score_mask)
        why = "run rahf evaluate before the export" if whole else "this baseline does not predict all four scores"
        console.print(f"no reference quantiles, so no percentiles: {why}", soft_wrap=True)
    return done


def _metrics(model: pathlib.Path, critic: Critic) -> dict[str, Any] | None:
    """What the newest evaluation of the same checkpoint found."""
    runs = [folder for folder in (model, *model.resolve().parents[:3]) if (folder / "config.json").is_file()]
    files = sorted(runs[0].glob("report/*/metrics.json"), key=lambda f: f.stat().st_mtime) if runs else []
    for file in reversed(files):
        try:
            found = json.loads(file.read_text())
            if str(found["meta"]["model"]).endswith(f"of step {critic.step}"):
                return found
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a report that cannot be read is no metric
    return None


def export(
    critic: Critic,
    file: str | os.PathLike,
    *,
    scores_only: bool = False,
    bf16: bool = False,
    weight_licence: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    metrics: dict[str, Any] | None = None,
) -> Exported:
    """Writes a model as one file, after comparing what the file gives with what the model gives.

    Args:
      critic: loaded from a run directory.
      file: where to; replaced only by a complete file.
      scores_only: only the four scores, without what heatmaps and words need.
      bf16: store weights as bfloat16, half as large; they are widened to float32 before they are used.
      weight_licence: of the weights; None: what is recorded about them.
      platforms: kinds of devices that the file shall run on.
      metrics: `metrics.json` of an evaluation, for the model card.

    Raises:
      ExportError: the file cannot be written, or gives other numbers than the model; the model's numbers are not
        finite; or its vocabulary could not be read from the file.
      ValueError: the model is an exported file itself, or an unknown platform.
    """
    if critic.graphdef is None:
        raise ArgumentError("export: this model is an exported file already; give the run directory it was made from")
    unknown = sorted(set(platforms) - {"cpu", "cuda", "rocm", "tpu"})
    if unknown or not platforms:
        raise ArgumentError(
            f"platforms: expected some of {', '.join(PLATFORMS)}, found {', '.join(platforms) or 'none'}"
        )
    file = pathlib.Path(file)
    if file.is_dir():
        raise ExportError(f"{file}: is a directory; give the name of a file to write")
    problem = vocabulary.standalone_problem(critic.tokenizer)
    if problem:
        raise ExportError(
            f"{critic.tokenizer.source}: {problem}; what reads an exported file knows only CLIP's own way with texts. "
            "Use the run directory as it is, or import the model again with its vocab.json and merges.txt alone"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = export_functions.needed(critic) if scores_only else tree.flatten(critic.params)
    dtype = jnp.bfloat16 if bf16 else np.float32
    weights = {path: np.ascontiguousarray(leaf, dtype) for path, leaf in weights.items()}
    functions = export_functions.serialized(critic, weights, scores_only, tuple(platforms))
    known = _known(critic, bf16, weight_licence)
    with replacing(file) as unfinished:
        about, parts = _parts(critic, functions, weights, known, platforms, metrics)
        archive.write(unfinished, parts, about)
        here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        difference = _difference(critic, unfinished, bf16) if here in platforms else float("nan")
    return Exported(file, file.stat().st_size, difference)


def _known(critic: Critic, bf16: bool, weight_licence: str | None) -> provenance.Provenance:
    known = critic.provenance
    name = known.model_id + ("-bf16" if bf16 else "")  # other weights are another model
    quantiles = known.quantiles and dataclasses.replace(known.quantiles, model=name)
    licence = weight_licence or known.weight_licence
    return dataclasses.replace(known, model_id=name, weight_licence=licence, quantiles=quantiles)


def _parts(
    critic: Critic,
    functions: dict[str, bytes],
    weights: dict[str, np.ndarray],
    known: provenance.Provenance,
    platforms: Sequence[str],
    metrics: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest's content and all parts."""
    described = provenance.preprocessing(critic.config, critic.tokenizer)
    about = {
        "rahf": rahf.__version__,
        "jax": jax.__version__,
        "name": critic.name,
        "step": critic.step,
        "model_id": known.model_id,
        "preprocessing_hash": known.preprocessing_hash,
        "weight_licence": known.weight_licence,
        "platforms": list(platforms),
        "weights": {"dtype": next(iter(weights.values())).dtype.name, "count": sum(w.size for w in weights.values())},
        "functions": {name: f"functions/{name}.jax_export" for name in functions},
        "vjp_order": 1,
    }
    parts = {about["functions"][name]: data for name, data in functions.items()}
    parts[exported.WEIGHTS] = safetensors.numpy.save(weights, {"format": "rahf"})
    parts[exported.TOKENIZER] = critic.tokenizer.model
    parts[exported.CONFIG] = config_lib.to_json(_without_paths(critic.config)).encode()
    parts[exported.PREPROCESSING] = (json.dumps(described, indent=1) + "\n").encode()
    if known.quantiles is not None:
        parts[provenance.QUANTILES_FILE] = known.quantiles.to_json().encode()
    parts["README.md"] = model_card.card(critic.config, about, known, metrics).encode()
    parts["LICENSES.md"] = model_card.licences(known.weight_licence).encode()
    return about, parts


def _without_paths(config: config_lib.Config) -> config_lib.Config:
    """Folders of the machine that trained are nobody's business."""
    data = dataclasses.replace(config.data, path=pathlib.PurePath(config.data.path).name, tokenizer="dataset")
    start = dataclasses.replace(config.start, vision="", text="", model="") if hasattr(config, "start") else None
    changes = {} if start is None else {"start": start}
    return dataclasses.replace(config, workdir=pathlib.PurePath(config.workdir).name, data=data, **changes)


def _difference(critic: Critic, file: pathlib.Path, bf16: bool) -> float:
    """Largest difference between what the file and the model say of noise pictures. Raises ExportError if large."""
    again = exported.load(file)
    stream = np.random.default_rng(0)
    side = critic.config.model.image_size
    images = list(stream.integers(0, 256, (3, side, side, 3), np.uint8))
    prompts = ["a", "a red star left of two blue rings", "one picture, made by a machine"]
    with warnings.catch_warnings():  # a network of short prompts cuts these, and nobody gave them
        warnings.simplefilter("ignore", PromptWarning)
        found, expected = again(images, prompts), critic(images, prompts)
    # Without what an export of scores only lacks, and what a baseline does not predict.
    filled = Prediction(*(b if a is None else a for a, b in zip(tuple(found), tuple(expected))))
    said = families.outputs(critic.config.model)
    pairs = {name: (a, said.predicted(expected)[name]) for name, a in said.predicted(filled).items()}
    for name, (_, b) in pairs.items():
        if not np.isfinite(b).all():
            raise ExportError(f"the model's own {name} are not finite; nothing was written. Check its weights")
    worst = float(np.max([np.abs(a - b).max(initial=0) for a, b in pairs.values()]))
    computes = critic.config.model.compute_dtype
    allowed = np.inf if bf16 else TOLERANCE if computes == "float32" else _HALF_TOLERANCE
    if not worst <= allowed:
        raise ExportError(
            f"{file.name}: gives other numbers than the model (difference {worst:.2g}, at most {allowed:.2g}); "
            "nothing was written. This is an error of rahf or of this version of jax; please report it"
        )
    return worst
