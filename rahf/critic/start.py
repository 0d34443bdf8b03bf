"""What a fresh critic starts from: published towers or another critic; and the vocabulary that belongs to it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rahf.config import ClipBaselineConfig, Config, CriticConfig, FamilyConfig
from rahf.core.errors import PretrainedError, TrainError
from rahf.critic import families, towers
from rahf.nn import functional
from rahf.pretrained import clip, t5
from rahf.pretrained.positions import resize_positions
from rahf.text import Tokenizer
from rahf.training import start as start_lib
from rahf.training.run_lock import begun
from rahf.training.task import Start


def load(config: Config, shapes: functional.Params) -> Start:
    """Reads what `config.start` names; empty if it names nothing.

    Towers stay on the host, from where each device is sent its share; the parameters of another model are
    read straight into their shards.

    Args:
      shapes: jax.ShapeDtypeStruct of every parameter, with shardings.

    Raises:
      TrainError: contradictory fields, or a model with another network than the configured one.
      PretrainedError, CheckpointError: towers or a model that cannot be read or do not fit; by tensor.
    """
    start = config.start
    if not (start.model or start.vision or start.text):
        return Start({}, {})
    if start.model:
        return start_lib.from_model(config, shapes, lambda *read: _read_with_positions(config.model, *read))
    params, record = towers.load_towers(
        config.model,
        vision=start.vision or None,
        text=start.text or None,
        vision_revision=start.vision_revision or None,
        text_revision=start.text_revision or None,
    )
    return Start(params, record | start_lib.shares(shapes, params))


def _read_with_positions(
    ours: FamilyConfig,
    there: FamilyConfig,
    shapes: functional.Params,
    read: Callable[[functional.Params], functional.Params],
) -> tuple[functional.Params, dict[str, Any]]:
    """Reads parameters; position embeddings of another image size are interpolated to ours."""
    sides = _grid_sides(there, ours) if "position" in shapes.get("vit", {}) else None
    if sides is None:
        return read(shapes), {"positions": None}
    stored = _stored_position(shapes["vit"]["position"], *sides)
    params = read(shapes | {"vit": shapes["vit"] | {"position": stored}})
    position = _interpolated(np.asarray(params["vit"]["position"]), *sides)
    notes = {"positions": {"from": [sides[0]] * 2, "to": [sides[1]] * 2, "interpolation": "bicubic"}}
    return params | {"vit": params["vit"] | {"position": position}}, notes


def _grid_sides(there: FamilyConfig, ours: FamilyConfig) -> tuple[int, int] | None:
    """Sides of the two models' grids of patches; None if they are the same."""
    sides = there.image_size // there.vit.patch_size, ours.image_size // ours.vit.patch_size
    return None if sides[0] == sides[1] else sides


def _stored_position(position: jax.ShapeDtypeStruct, there: int, ours: int) -> jax.ShapeDtypeStruct:
    """Shape of another grid's position embeddings, replicated: their rows may not divide as ours do."""
    place = position.sharding
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    rows = position.shape[0] + there**2 - ours**2
    return jax.ShapeDtypeStruct((rows, position.shape[1]), position.dtype, sharding=place)


def _interpolated(position: np.ndarray, there: int, ours: int) -> np.ndarray:
    """Position embeddings [class token + there², D] interpolated to [class token + ours², D], float32."""
    first, rest = np.split(position, [len(position) - there**2])
    return np.concatenate([first, resize_positions(rest, there, ours, "bicubic")])


def tokenizer(config: Config) -> Tokenizer:
    """The vocabulary of a run, by `data.tokenizer`, checked against the network and against what it starts from.

    Raises:
      TrainError: no such vocabulary, or one that does not fit (names both sizes).
      PretrainedError: the same of a vocabulary and a published T5.
    """
    start_lib.check(config)
    fresh = not begun(pathlib.Path(config.workdir))
    tokenizer = _read(config, fresh)
    problem = families.vocabulary_problem(config.model, tokenizer)
    if problem:
        raise TrainError(problem)
    if fresh and config.start.text and isinstance(config.model, CriticConfig):
        _check_t5(tokenizer, config.model.t5.vocab_size)
    elif fresh:
        start_lib.check_same_vocabulary(config, tokenizer)
    return tokenizer


def _check_t5(tokenizer: Tokenizer, rows: int) -> None:
    try:
        t5.check_t5_vocabulary(tokenizer, rows)
    except PretrainedError as error:
        raise PretrainedError(f"{error}; set data.tokenizer to 'start' for the one beside the T5") from error


def _read(config: Config, fresh: bool) -> Tokenizer:
    name, start = config.data.tokenizer, config.start
    if not isinstance(config.model, ClipBaselineConfig):
        return start_lib.tokenizer(config, fresh)
    if name != "prompts" and not (name == "start" and (start.model or not fresh)):
        folder = start.vision if name == "start" else name  # CLIP's vocabulary lies beside its image tower
        if folder and (name == "start" or pathlib.Path(folder).is_dir()):
            revision = (start.vision_revision or None) if name == "start" else None
            return clip.published_clip_tokenizer(folder, revision=revision)
    return start_lib.tokenizer(config, fresh, config.model.clip.text.vocab_size)
