"""`rahf export`: writes a trained model as one self-contained file, which `rahf.critic.export.read` reads.

`jax.export` lowers the functions to StableHLO with a symbolic batch size, for several platforms at once, with their
first derivatives. The weights are arguments of the functions, not constants in them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from rich.console import Console
from rich.text import Text

from rahf import config as config_lib
from rahf.core import json_text, names, terminal, tree
from rahf.core.batch import Prediction
from rahf.core.errors import ArgumentError, ExportError, NotFinite
from rahf.core.files import read_regular, replacing
from rahf.core.version import __version__
from rahf.critic import loading, provenance
from rahf.critic.critic import Critic
from rahf.critic.evaluation import constant
from rahf.critic.export import archive, card, functions, read
from rahf.text import vocabulary
from rahf.text.prompts import collected_notes
from rahf.training import run_folder

#: Platforms that a file is exported for by default.
PLATFORMS = ("cpu", "cuda", "tpu")
#: Largest difference to the checkpoint's outputs that a float32 export may have.
TOLERANCE = 1e-5
#: The same of a network that computes in bfloat16: 8 bits of precision, and XLA fuses the two programs differently.
_BFLOAT16_TOLERANCE = 0.05


class WrittenExport(NamedTuple):
    """The file, its size in bytes, the provenance in it, and the largest difference to the checkpoint's outputs.

    The difference is NaN where the file was not exported for the platform of this machine and could not be run.
    """

    file: pathlib.Path
    size: int
    provenance: provenance.Provenance
    difference: float
    notes: tuple[str, ...] = ()  # outputs that are the same for all pictures, in words


def export_run(
    model: str | os.PathLike,
    file: str | os.PathLike,
    *,
    console: Console | None = None,
    force: bool = False,
    **options: Any,
) -> WrittenExport:
    """Loads a model, exports it with the metrics of its newest evaluation if there is one, and prints a summary.

    Args:
      model: run directory or checkpoint directory.
      file: as in `write_export`.
      console: where the summary goes; None: stdout.
      force: replace any file; False: only another export.
      options: of `write_export`.

    Raises:
      ExportError: the file exists and is no export.
      As `rahf.load` and `write_export`.
    """
    console = console or terminal.console()
    check_replaceable(file, force)
    critic = loading.load(model)
    written = write_export(critic, file, metrics=_newest_metrics(pathlib.Path(model), critic), force=force, **options)
    origin = written.provenance
    check = f"largest difference to the checkpoint {written.difference:.1e}"
    if np.isnan(written.difference):
        check = "not run here, since it was not made for the devices of this machine"
    lines = [f"{written.file}: {written.size / 1e6:.1f} MB, model {origin.model_id}; {check}"]
    lines += [f"weights: {origin.weight_license}"]
    if origin.quantiles is None:
        all_scores = all(critic.outputs.score_mask)
        why = "run rahf evaluate before the export" if all_scores else "this model does not predict all four scores"
        lines += [f"no reference quantiles, so no percentiles: {why}"]
    signs = run_folder.signs_of_no_training(*run_folder.find(model))
    lines += [f"note: {note}" for note in (critic.outputs.note(), *signs, *written.notes) if note]
    for line in lines:
        console.print(Text(names.one_line(line)), soft_wrap=True)
    return written


def _newest_metrics(model: pathlib.Path, critic: Critic) -> dict[str, Any] | None:
    """`metrics.json` of the newest evaluation of the critic's checkpoint; None without one."""
    runs = [folder for folder in (model, *model.resolve().parents[:3]) if (folder / "config.json").is_file()]
    files = sorted(runs[0].glob("report/*/metrics.json"), key=lambda f: f.stat().st_mtime) if runs else []
    for file in reversed(files):
        try:
            metrics = json_text.parse_object(read_regular(file))
            if str(metrics["meta"]["model"]).endswith(f"of step {critic.step}"):
                return _checked(metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # an unreadable report counts as: not evaluated
    return None


def _checked(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the model card shows of a `metrics.json`: finite numbers, and texts of one printable line."""
    values = {name: json_text.finite(value) for name, value in metrics["metrics"].items()}
    intervals = {name: [json_text.finite(edge) for edge in pair or ()] for name, pair in metrics["intervals"].items()}
    return {
        "metrics": {name: value for name, value in values.items() if value is not None},
        "intervals": {name: pair for name, pair in intervals.items() if len(pair) == 2 and None not in pair},
        "meta": {name: names.one_line(text) for name, text in metrics["meta"].items()},
    }


def write_export(
    critic: Critic,
    file: str | os.PathLike,
    *,
    scores_only: bool = False,
    bf16: bool = False,
    weight_license: str | None = None,
    platforms: Sequence[str] = PLATFORMS,
    metrics: dict[str, Any] | None = None,
    about: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> WrittenExport:
    """Writes a model as one file. The file takes its name after its outputs were compared with those of the model.

    Args:
      critic: loaded from a run directory.
      file: the file; an existing export is replaced, and only by a complete one.
      scores_only: export only the four scores, without the weights that only heatmaps and words need.
      bf16: store weights as bfloat16, half as large; the functions widen them to float32.
      weight_license: license of the weights; None: the recorded one.
      platforms: JAX's names of the platforms that the file shall run on.
      metrics: `metrics.json` of an evaluation, for the model card.
      about: what its author says of it, for the model card, Markdown.
      name: of the model; None: that of the folder it was trained in, wherever it lies now. Its id stays the same.
      force: replace any file; False: only another export.

    Raises:
      ExportError: the file cannot be written, exists and is no export, is a folder, or gives other numbers than the
        model; the model's numbers are not finite; or its vocabulary could not be read from the file.
      ValueError: the model is an exported file itself, or an unknown platform.
    """
    if critic.graphdef is None:
        raise ArgumentError("export: this model is an exported file already; give the run directory it was made from")
    unknown = sorted(set(platforms) - {"cpu", "cuda", "rocm", "tpu"})
    if unknown or not platforms:
        raise ArgumentError(
            f"platforms: expected some of {', '.join(PLATFORMS)}, found {', '.join(platforms) or 'none'}"
        )
    check_replaceable(file, force)
    file = pathlib.Path(file)
    problem = vocabulary.standalone_problem(critic.tokenizer)
    if problem:
        raise ExportError(
            f"{critic.tokenizer.source}: {problem}; what reads an exported file knows only CLIP's own way with texts. "
            "Use the run directory as it is, or import the model again with its vocab.json and merges.txt alone"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = functions.score_weights(critic) if scores_only else tree.flatten(critic.params)
    weights = {path: leaf for path, leaf in weights.items() if not path.startswith(read.LEARNING_ONLY)}
    dtype = jnp.bfloat16 if bf16 else np.float32
    weights = {path: np.ascontiguousarray(leaf, dtype) for path, leaf in weights.items()}
    programs = functions.serialize_functions(critic, weights, scores_only, tuple(platforms))
    origin = _provenance(critic, bf16, weight_license)
    with replacing(file) as unfinished:
        manifest, parts = _manifest_and_parts(critic, programs, weights, origin, platforms, metrics, about, name)
        archive.write_archive(unfinished, parts, manifest)
        platform = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        difference, notes = float("nan"), ()
        if platform in platforms:
            exported = read.critic_of_archive(file.name, *archive.read_archive(unfinished))
            difference, notes = _check_outputs(critic, exported, file.name, np.inf if bf16 else None)
    return WrittenExport(file, file.stat().st_size, origin, difference, notes)


def check_replaceable(file: str | os.PathLike, force: bool) -> None:
    """Checks that an export may be written under a name: a new file, or one that is an export.

    Raises:
      ExportError: the name is that of a folder, or of a file that is something else and `force` is not set.
    """
    name = os.fspath(file)
    if os.path.isdir(name) or name.endswith(("/", os.sep)) or not pathlib.Path(name).name:
        folder = name.rstrip("/" + os.sep) or name
        raise ExportError(f"{name}: is a folder; give the name of a file to write, such as {folder}/model.rahf")
    if not os.path.lexists(name) or force:
        return
    if not os.path.isfile(name) or not archive.is_archive(name):
        raise ExportError(
            f"{name}: exists and is no export, so it is left alone; give another name, or --force (force=True)"
        )


def _provenance(critic: Critic, bf16: bool, weight_license: str | None) -> provenance.Provenance:
    """The provenance of the exported model. In bfloat16 the weights are others, and so is the model's id."""
    origin = critic.provenance
    name = origin.model_id + ("-bf16" if bf16 else "")
    quantiles = origin.quantiles and dataclasses.replace(origin.quantiles, model=name)
    weight_license = names.one_line(weight_license or origin.weight_license)
    return dataclasses.replace(origin, model_id=name, weight_license=weight_license, quantiles=quantiles)


def _manifest_and_parts(
    critic: Critic,
    programs: dict[str, bytes],
    weights: dict[str, np.ndarray],
    origin: provenance.Provenance,
    platforms: Sequence[str],
    metrics: dict[str, Any] | None,
    about: str | None,
    name: str | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Entries of the manifest, and parts by member name."""
    preprocessing = provenance.describe_preprocessing(critic.config, critic.tokenizer)
    stored = {"dtype": next(iter(weights.values())).dtype.name, "count": sum(w.size for w in weights.values())}
    stored["sha256_with_id"] = provenance.id_seal(
        names.one_line(origin.model_id), critic.config, weights, critic.tokenizer
    )
    manifest = {
        "rahf": __version__,
        "jax": jax.__version__,
        "name": names.one_line(name) if name else provenance.run_name(critic.config),
        "step": critic.step,
        "model_id": origin.model_id,
        "preprocessing_hash": origin.preprocessing_hash,
        "weight_license": origin.weight_license,
        "platforms": list(platforms),
        "not_learnt": list(critic.outputs.not_learnt),
        "weights": stored,
        "functions": {name: f"functions/{name}.jax_export" for name in programs},
        "vjp_order": 1,
    }
    parts = {manifest["functions"][name]: data for name, data in programs.items()}
    parts[read.WEIGHTS] = safetensors.numpy.save(weights, {"format": "rahf"})
    parts[read.TOKENIZER] = critic.tokenizer.model
    parts[read.CONFIG] = config_lib.to_json(without_paths(critic.config)).encode()
    parts[read.PREPROCESSING] = (json.dumps(preprocessing, indent=1) + "\n").encode()
    if origin.quantiles is not None:
        parts[provenance.QUANTILES_FILE] = origin.quantiles.to_json().encode()
    parts["README.md"] = card.model_card(critic, manifest, origin, metrics, about).encode()
    parts["LICENSES.md"] = card.license_text(origin.weight_license).encode()
    return manifest, parts


def without_paths(config: config_lib.Config) -> config_lib.Config:
    """Removes the folders of the machine that trained: they are private, and mean nothing elsewhere."""
    names = tuple(pathlib.PurePath(path).name for path in config.data.paths)
    data = dataclasses.replace(config.data, path=names if len(names) > 1 else names[0], tokenizer="dataset")
    start = dataclasses.replace(config.start, vision="", text="", model="") if hasattr(config, "start") else None
    changes = {} if start is None else {"start": start}
    return dataclasses.replace(config, workdir=pathlib.PurePath(config.workdir).name, data=data, **changes)


def _check_outputs(
    critic: Critic, exported: Critic, name: str, tolerance: float | None
) -> tuple[float, tuple[str, ...]]:
    """Compares the outputs of a model and of its export on images of noise.

    Args:
      critic: the model.
      exported: the same, read from its file.
      name: of the file, for the error.
      tolerance: largest difference that is allowed; None: that of the model's compute dtype.

    Returns:
      The largest absolute difference of all scores, heatmap pixels and word probabilities that both of them predict,
      and what is the same for all of these images.

    Raises:
      ExportError: a difference above the tolerance, or outputs that are not finite.
    """
    stream = np.random.default_rng(0)
    side = critic.config.model.image_size
    images = list(stream.integers(0, 256, (3, side, side, 3), np.uint8))
    prompts = ["a", "a red star left of two blue rings", "one picture, made by a machine"]
    with collected_notes():  # a network of short prompts cuts these; the user did not write them
        try:
            expected = critic(images, prompts)
        except NotFinite as error:
            raise ExportError(
                f"the model's own {error.output} are not finite; nothing was written. Check its weights"
            ) from error
        try:
            outputs = exported(images, prompts)
        except NotFinite as error:
            raise ExportError(f"{name}: gives numbers that are not finite, unlike the model: {error}") from error
    # An export of scores only lacks fields; a baseline does not predict all scores and heatmaps.
    filled = Prediction(*(b if a is None else a for a, b in zip(tuple(outputs), tuple(expected))))
    predicted = critic.outputs.predicted
    pairs = {field: (a, predicted(expected)[field]) for field, a in predicted(filled).items()}
    difference = float(np.max([np.abs(a - b).max(initial=0) for a, b in pairs.values()]))
    if tolerance is None:
        tolerance = TOLERANCE if critic.config.model.compute_dtype == "float32" else _BFLOAT16_TOLERANCE
    if not difference <= tolerance:
        raise ExportError(
            f"{name}: gives other numbers than the model (difference {difference:.2g}, at most {tolerance:.2g}); "
            "nothing was written. This is an error of rahf or of this version of jax; please report it"
        )
    constants = constant.Constants(critic.outputs)
    constants.update(Prediction(*map(np.asarray, expected)), np.arange(len(images)))
    note = constant.note(constants.found(), f"{len(images)} different pictures")
    return difference, (note,) if note else ()
