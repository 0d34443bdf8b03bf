"""Models as a run has stored them: finding a checkpoint, and reading its parameters without the run's state."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rahf.core import hub, licenses, shipped
from rahf.core.errors import CheckpointError, Damaged
from rahf.core.files import read_regular
from rahf.core.tree import matching_names
from rahf.nn import functional
from rahf.training import checksum, trainable
from rahf.training.orbax_silence import quiet


@contextlib.contextmanager
def reading(folder: pathlib.Path, remedy: str = "") -> Iterator[None]:
    """Any failure inside means that the checkpoint in `folder` is damaged: CheckpointError with the remedy."""
    try:
        with quiet():
            yield
    except Exception as error:  # Orbax and TensorStore raise many kinds; all mean: damaged
        raise Damaged(f"{folder}: cannot be read ({error}); the checkpoint is damaged{remedy}") from error


def stored_shapes(folder: pathlib.Path) -> dict[str, Any]:
    """Shapes and dtypes of what a checkpoint's `state` holds, without reading the arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder)
    metadata = getattr(metadata, "item_metadata", metadata)
    tree = getattr(metadata, "tree", metadata)
    if not tree:
        raise ValueError("the list of its arrays is missing or damaged")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), dict(tree))


def stored_checksums(folder: pathlib.Path) -> dict[str, int]:
    """Checksums that were saved with the checkpoint of a step; empty for a checkpoint of a version that saved none."""
    file = folder / "checksums" / "metadata"
    return json.loads(read_regular(file)) if file.parent.is_dir() else {}


def verify(restored: dict[str, Any], recorded: dict[str, int]) -> None:
    """Raises ValueError if arrays are not what was saved, or are not finite: a model of NaN answers with NaN."""
    bad, what = [], "another checksum than when it was saved"
    if recorded:
        bad = checksum.differing(checksum.of_arrays(restored), recorded)
    if not bad:
        flat = functional.flatten(restored)
        bad, what = [path for path, leaf in flat.items() if not _is_finite(leaf)], "values not finite (NaN or infinite)"
    if bad:
        raise ValueError(f"{bad[0]}{f' and {len(bad) - 1} more arrays' if len(bad) > 1 else ''}: {what}")


def _is_finite(leaf: jax.Array | np.ndarray) -> bool:
    """Whether what this process holds of an array is finite. On a CPU NumPy sees its memory; nothing is compiled."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return True
    if isinstance(leaf, np.ndarray):
        return bool(np.isfinite(leaf).all())
    parts = [shard.data for shard in leaf.addressable_shards]
    if jax.default_backend() == "cpu":
        return all(np.isfinite(np.asarray(part)).all() for part in parts)
    return all(bool(jnp.isfinite(part).all()) for part in parts)


def check_fits(stored: functional.Params, expected: functional.Params, where: str) -> None:
    """Raises CheckpointError listing every parameter that is missing, extra or of another shape."""
    lines = functional.parameter_differences(stored, expected)
    if lines:
        raise CheckpointError(
            f"{where}: the checkpoint belongs to another architecture:\n  " + "\n  ".join(lines) + "\n"
            "Use the configuration it was trained with, or another --workdir."
        )


def find(path: str | pathlib.Path, expected: str = "") -> tuple[pathlib.Path, pathlib.Path]:
    """Finds a model from what a user points at.

    Args:
      path: a run directory (its best checkpoint, else the newest) or one checkpoint of it
        (`RUN/checkpoints/latest/1000`), or the hub id of a repository that holds a run directory.
      expected: what belongs there, for the message where nothing is; "": any model.

    Returns:
      The run directory (with `config.json` and `tokenizer.model`) and the checkpoint's `state` folder.

    Raises:
      CheckpointError: there is no model; says what is there instead.
    """
    if hub.is_id(path):
        path = hub.download(str(path))
    folder = pathlib.Path(path).resolve()
    if not folder.exists():
        raise CheckpointError(f"{path}: no such file or directory; expected {expected or _any_model()}")
    run = next((p for p in (folder, *folder.parents[:3]) if (p / "config.json").is_file()), None)
    if run is None:
        contents = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "a file"
        raise CheckpointError(
            f"{path}: not a model: expected {expected or 'a run directory'}, with config.json and checkpoints/, "
            f"found {contents or 'nothing'}"
        )
    if (folder / "state").is_dir():
        return run, folder / "state"
    if folder.name in ("best", "latest"):
        candidates = [folder]
    else:
        candidates = [run / "checkpoints" / name for name in ("best", "latest")]
    for candidate in candidates:
        steps = sorted((int(p.name) for p in candidate.glob("*") if p.name.isdigit()), reverse=True)
        if steps:
            return run, candidate / str(steps[0]) / "state"
    raise CheckpointError(f"{path}: no finished checkpoint yet; has the run saved one?")


def _any_model() -> str:
    names = f"the name of a model that comes with rahf ({', '.join(shipped.names()) or 'none'})"
    return f"a run directory of `rahf train`, a file of `rahf export`, or {names}"


def load_params(state_folder: pathlib.Path, expected: functional.Params, skip: Sequence[str] = ()) -> functional.Params:
    """Reads only the parameters to evaluate (the average if there is one) of a checkpoint; prints the weights' license.

    Args:
      state_folder: of `find`.
      expected: shapes (and shardings, if set) of the model.
      skip: parts of the checkpoint (``heatmap_*``) that are not expected and not read.

    Raises:
      CheckpointError: another architecture, or files that cannot be read.
    """
    remedy = ": name another one"
    with reading(state_folder, remedy):
        stored = stored_shapes(state_folder)
    partial = trainable.is_part(stored)
    which = "ema" if stored.get("ema") and not partial else "params"
    skipped = matching_names(stored[which], skip)
    check_fits({n: part for n, part in stored[which].items() if n not in skipped}, expected, str(state_folder))
    for folder in state_folder.parents[:4]:
        if (folder / "config.json").is_file():
            licenses.log_licenses(folder)
            break
    # A partial restore: the optimizer's moments, two thirds of the file, stay on disk.
    item = {which: expected}
    if partial:
        item |= _shapes_of_trained(stored, expected, skipped)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    with reading(state_folder, remedy), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        restored = checkpointer.restore(state_folder, args=args)
        verify(restored, stored_checksums(state_folder.parent))
    if not partial:
        return restored[which]
    return trainable.merged_params(restored["params"], restored.get("ema"), restored.get("lora"))


def signs_of_no_training(run: pathlib.Path, state_folder: pathlib.Path) -> list[str]:
    """Why the weights of a checkpoint cannot be other than those that training began with, one line each.

    Args:
      run: directory with `config.json`.
      state_folder: of `find`.

    Returns:
      Empty for a model that was trained, and for one that was imported.
    """
    signs = []
    config = json.loads(read_regular(run / "config.json"))
    rate = config.get("optimizer", {}).get("learning_rate")
    if rate == 0 and not (run / licenses.MODEL_FILE).exists():
        signs.append("dead: optimizer.learning_rate is 0, so the weights are those that the run began with")
    with reading(state_folder):
        lora = (stored_shapes(state_folder).get("lora") or {}).get("adapters")
        if lora and not _any_nonzero(state_folder, lora):
            signs.append("dead: the low-rank adapters are zero, so the model is the one that the run began with")
    return signs


def _any_nonzero(state_folder: pathlib.Path, adapters: dict[str, Any]) -> bool:
    """Whether any adapter changes its kernel: A is random, and B starts at 0."""
    item = {"lora": {"adapters": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), adapters)}}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=as_numpy, partial_restore=True)
        flat = functional.flatten(checkpointer.restore(state_folder, args=args)["lora"]["adapters"])
    return any(np.any(flat[p]) and np.any(flat[p.removesuffix("b") + "a"]) for p in flat if p.endswith("/b"))


def _shapes_of_trained(stored: dict[str, Any], expected: functional.Params, skipped: Sequence[str]) -> dict[str, Any]:
    """Shapes of averages and adapters of a run that trains a part of its network, without the skipped parts."""
    place = getattr(jax.tree.leaves(expected)[0], "sharding", None)
    if isinstance(place, jax.sharding.NamedSharding):
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    trees = {name: stored[name] for name in ("ema", "lora") if stored.get(name)}
    kept = {p: leaf for p, leaf in functional.flatten(trees).items() if not {*p.split("/")[:4]} & {*skipped}}
    placed = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for p, leaf in kept.items()}
    return functional.unflatten(placed)
