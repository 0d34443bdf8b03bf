"""What a fresh run starts from: published towers or another model; and the vocabulary that belongs to it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from data_pipelines import store
from rahf import config as config_lib
from rahf.config import Config, ModelConfig
from rahf.core import licenses as origin
from rahf.core.errors import TrainError
from rahf.critic.networks import kinds
from rahf.nn import functional
from rahf.text import Tokenizer, load_tokenizer
from rahf.training import checkpoint
from rahf.training.run_lock import begun
from rahf.training.state import Setup

_VOCABULARIES = ("spiece.model", "tokenizer.model")  # beside a T5; in a run directory
#: Fields of a model's config that do not change what its parameters mean.
_HARMLESS = (
    "image_size",  # position embeddings are interpolated; whatever else depends on it has another shape, as of
    "vocab_size",
    "dropout", "prior", "compute_dtype", "attention", "remat", "scan_layers",
    "variant", "task_ids", "tasks_per_example",  # the names of the heads tell
)  # fmt: skip
#: What the parameters are called that a part of a model's config describes.
_DESCRIBES = {"vit": "vit", "t5": "encoder", "heatmap_head": "heatmap", "score_head": "score"}


class Start(NamedTuple):
    """Parameters to start from (any part of the tree) and the record of where they came from."""

    params: functional.Params
    record: dict[str, Any]

    def note(self, workdir: pathlib.Path, say: Callable[[str], None] | None) -> None:
        """Writes the record beside `config.json` and says it; `say` is None in all processes but the first."""
        if say is not None:
            origin.write(workdir, self.record)
            for line in origin.table(self.record):
                say(line)


def load(config: Config, made: Setup) -> Start:
    """Reads what `config.start` names; empty if it names nothing.

    Towers stay on the host, from where each device is sent its share; the parameters of another model are
    read straight into their shards.

    Raises:
      TrainError: contradictory fields, or a model with another network than the configured one.
      PretrainedError, CheckpointError: towers or a model that cannot be read or do not fit; by tensor.
    """
    start, shapes = config.start, made.shapes.params
    if not (start.model or start.vision or start.text):
        return Start({}, {})
    from rahf.critic import towers

    if start.model:
        params, record = _from_model(config, shapes)
    else:
        params, record = towers.load_towers(
            config.model,
            vision=start.vision or None,
            text=start.text or None,
            vision_revision=start.vision_revision or None,
            text_revision=start.text_revision or None,
        )
    return Start(params, record | towers.shares(shapes, params))


def check(config: Config) -> None:
    """Refuses contradictory fields of `config.start`. Raises TrainError."""
    start = config.start
    if start.model and (start.vision or start.text):
        raise TrainError("start.model brings its own towers; give either it, or start.vision and start.text")
    if start.fresh and not start.model:
        raise TrainError("start.fresh leaves parts of start.model random, which is not given")
    for name, of in (("vision_revision", "vision"), ("text_revision", "text")):
        if getattr(start, name) and not getattr(start, of):
            raise TrainError(f"start.{name} is given without start.{of}")


def _from_model(config: Config, shapes: functional.Params) -> tuple[functional.Params, dict[str, Any]]:
    run, state = checkpoint.find(config.start.model)
    left = origin.matching(shapes, config.start.fresh)
    for pattern in config.start.fresh:
        if not origin.matching(shapes, [pattern]):
            raise TrainError(f"start.fresh: no part {pattern!r}; the network has {', '.join(sorted(shapes))}")
    there = config_lib.from_json((run / "config.json").read_text(), where=str(run / "config.json"))
    wanted = {name: part for name, part in shapes.items() if name not in left}
    _check_network(run, there.model, config.model, list(wanted))
    grids = _grids(there.model, config.model) if "position" in wanted.get("vit", {}) else None
    if grids:
        wanted["vit"] = wanted["vit"] | {"position": _of_grid(wanted["vit"]["position"], *grids)}
    params = checkpoint.load_params(state, wanted, skip=config.start.fresh)
    if grids:
        params["vit"] = params["vit"] | {"position": _moved(np.asarray(params["vit"]["position"]), *grids)}
    licenses = origin.model_licenses(run)
    record = {
        "name": config.start.model,
        "checkpoint": f"{state.parent.parent.name}/{state.parent.name}",
        "license": "; ".join(sorted(set(licenses.values()))) or "trained here",
        "licenses": licenses,
        "parts": sorted(params),
        "parameters": functional.count(params),
        "positions": grids and {"from": [grids[0]] * 2, "to": [grids[1]] * 2, "interpolation": "bicubic"},
    }
    return params, {"model": record}


def _grids(there: ModelConfig, ours: ModelConfig) -> tuple[int, int] | None:
    """Sides of the two models' grids of patches; None if they are the same."""
    sides = there.image_size // there.vit.patch_size, ours.image_size // ours.vit.patch_size
    return None if sides[0] == sides[1] else sides


def _of_grid(position: jax.ShapeDtypeStruct, there: int, ours: int) -> jax.ShapeDtypeStruct:
    """Position embeddings as another grid has them, on each device all of them: their rows may not divide as ours do."""
    place = position.sharding
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    rows = position.shape[0] + there**2 - ours**2
    return jax.ShapeDtypeStruct((rows, position.shape[1]), position.dtype, sharding=place)


def _moved(position: np.ndarray, there: int, ours: int) -> np.ndarray:
    """Position embeddings [class token + there², D] interpolated to [class token + ours², D], float32."""
    from rahf.pretrained.positions import resize_positions

    first, rest = np.split(position, [len(position) - there**2])
    return np.concatenate([first, resize_positions(rest, there, ours, "bicubic")])


def _check_network(run: pathlib.Path, there: ModelConfig, ours: ModelConfig, wanted: list[str]) -> None:
    """Shapes do not tell everything: the number of attention heads, an activation, the normalisation of pixels."""
    lines = []
    for field in dataclasses.fields(ModelConfig):
        named = _DESCRIBES.get(field.name)
        if field.name in _HARMLESS or named and not any(name.startswith(named) for name in wanted):
            continue
        old, new = getattr(there, field.name), getattr(ours, field.name)
        pairs = {"": (old, new)}
        if dataclasses.is_dataclass(old):
            pairs = {f".{f.name}": (getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)}
        lines += [
            f"model.{field.name}{name} is {b!r}, that model has {a!r}"
            for name, (a, b) in pairs.items()
            if a != b and name[1:] not in _HARMLESS
        ]
    if lines:
        raise TrainError(
            f"start.model {run}: belongs to another network than the configured one:\n  " + "\n  ".join(lines) + "\n"
            "Configure the same, or leave the parts that differ random with start.fresh."
        )


def tokenizer(config: Config) -> Tokenizer:
    """The vocabulary of a run, by `data.tokenizer`, checked against the network and against what it starts from.

    Raises:
      TrainError: no such vocabulary, or one that does not fit (names both sizes).
      PretrainedError: the same of a vocabulary and a published T5.
    """
    check(config)
    workdir = pathlib.Path(config.workdir)
    fresh = not begun(workdir)
    found = _read(config, workdir, fresh)
    problem = kinds.vocabulary_problem(config.model, found)
    if problem:
        raise TrainError(problem)
    if fresh and config.start.text:
        _check_t5(found, config.model.t5.vocab_size)
    elif fresh and config.start.model and not origin.matching(["embedding"], config.start.fresh):
        _check_model(found, config.start.model)
    return found


def _check_t5(found: Tokenizer, rows: int) -> None:
    from rahf.core.errors import PretrainedError
    from rahf.pretrained import t5

    try:
        t5.check_t5_vocabulary(found, rows)
    except PretrainedError as error:
        raise PretrainedError(f"{error}; set data.tokenizer to 'start' for the one beside the T5") from error


def _check_model(found: Tokenizer, model: str) -> None:
    own = load_tokenizer(checkpoint.find(model)[0] / "tokenizer.model")
    if own.model != found.model:
        raise TrainError(
            f"{found.source}: has {found.vocab_size} pieces and is not the vocabulary that {model} was trained "
            f"with, which has {own.vocab_size}; set data.tokenizer to 'start'"
        )


def _read(config: Config, workdir: pathlib.Path, fresh: bool) -> Tokenizer:
    given, start = config.data.tokenizer, config.start
    if config.model.kind == "clip" and not (given == "start" and (start.model or not fresh)):
        folder = start.vision if given == "start" else given  # CLIP's vocabulary lies beside its image tower
        if folder and (given == "start" or pathlib.Path(folder).is_dir()):
            from rahf.pretrained import clip

            return clip.published_clip_tokenizer(
                folder, revision=(start.vision_revision or None) if given == "start" else None
            )
    return load_tokenizer(_file(config, workdir, fresh))


def _file(config: Config, workdir: pathlib.Path, fresh: bool) -> pathlib.Path:
    given = config.data.tokenizer
    if given == "dataset":
        return store.tokenizer_path(config.data.path)
    if given == "start":
        return _beside_start(config, workdir, fresh)
    file = pathlib.Path(given)
    if file.is_dir():
        return _in_folder(file)
    if not file.is_file():
        raise TrainError(
            f"data.tokenizer: no file {file}; give a SentencePiece model, the folder of a T5, 'start' or 'dataset'"
        )
    return file


def _beside_start(config: Config, workdir: pathlib.Path, fresh: bool) -> pathlib.Path:
    if not fresh:  # a run that goes on needs nothing but itself
        return workdir / "tokenizer.model"
    if config.start.text:
        from rahf.pretrained import source

        return _in_folder(source.locate(config.start.text, config.start.text_revision or None).folder)
    if config.start.model:
        return checkpoint.find(config.start.model)[0] / "tokenizer.model"
    raise TrainError(
        "data.tokenizer is 'start', but neither start.text nor start.model is given; "
        "give one, or set data.tokenizer to 'dataset' to train from scratch"
    )


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    for name in _VOCABULARIES:
        if (folder / name).is_file():
            return folder / name
    raise TrainError(f"data.tokenizer: {folder} has no vocabulary; expected {' or '.join(_VOCABULARIES)} in it")
