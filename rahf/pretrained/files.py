"""Opens the weights of published checkpoints without ever running a pickle.

They lie in `model.safetensors`, in several such files with an index, or in PyTorch's `.bin`. Tensors are
opened lazily, so that a network is never in memory twice.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import struct
import zipfile
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from rahf.core.errors import PretrainedError
from rahf.pretrained import source as source_lib
from rahf.pretrained.source import Source


class Stored(NamedTuple):
    """A tensor in a file, not read yet. `load` returns it as float32, or as it is if not of a float dtype."""

    shape: tuple[int, ...]
    dtype: str  # in words, for messages
    file: str
    load: Callable[[], np.ndarray]


def open_folder(source: Source) -> dict[str, Stored]:
    """Opens the weights of a checkpoint folder; safetensors are preferred.

    Raises:
      PretrainedError: no weights, a part of them missing, or a file that cannot be read.
    """
    folder = source.folder
    for single, index, opened in (
        ("model.safetensors", "model.safetensors.index.json", open_safetensors),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch),
    ):
        if (folder / index).is_file():
            return _open_parts(folder / index, opened)
        if (folder / single).is_file():
            return opened(folder / single)
    parts = sorted(p.name for p in folder.glob("*-of-*.*"))
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    why = f"{parts[0]} is one part of several, and the index that names them is missing" if parts else f"found {found}"
    raise PretrainedError(f"{folder}: no weights (model.safetensors or pytorch_model.bin, or an index of parts): {why}")


def _open_parts(index: pathlib.Path, opened: Callable[[pathlib.Path], dict[str, Stored]]) -> dict[str, Stored]:
    listed = source_lib.read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise PretrainedError(f"{index}: has no weight_map from tensor names to file names")
    parts = sorted(set(listed.values()))
    foreign = [p for p in parts if pathlib.PurePath(p).name != p]
    if foreign:
        raise PretrainedError(f"{index}: names {foreign[0]!r}, which is not a file of the same folder; not opened")
    absent = [p for p in parts if not (index.parent / p).is_file()]
    if absent:
        lost = sorted(name for name, part in listed.items() if part in absent)
        raise PretrainedError(
            f"{index}: {len(absent)} of {len(parts)} files are missing: {', '.join(absent)}; "
            f"they hold {len(lost)} of {len(listed)} tensors, such as {lost[0]}. "
            "Download them into the same folder."
        )
    found: dict[str, Stored] = {}
    for part in parts:
        stored = opened(index.parent / part)
        lost = sorted(name for name, home in listed.items() if home == part and name not in stored)
        if lost:
            raise PretrainedError(
                f"{index.parent / part}: lacks {len(lost)} tensors that {index.name} promises: " + source_lib.few(lost)
            )
        twice = sorted(set(found) & set(stored))
        if twice:
            raise PretrainedError(
                f"{index.parent / part}: holds tensors that another part holds too: {source_lib.few(twice)}"
            )
        found.update(stored)
    return found


def open_safetensors(file: pathlib.Path) -> dict[str, Stored]:
    """Opens one safetensors file. Raises PretrainedError if it is damaged or incomplete."""
    import safetensors

    try:
        handle = safetensors.safe_open(file, framework="np")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(
            f"{file}: not a complete safetensors file ({error}); {source_lib.if_pointer(file)}"
        ) from error
    found = {}
    for name in handle.keys():
        piece = handle.get_slice(name)
        dtype = piece.get_dtype()
        load = functools.partial(_bfloat16, file, name) if dtype == "BF16" else functools.partial(_loaded, handle, name)
        found[name] = Stored(tuple(piece.get_shape()), dtype, file.name, load)
    return found


def _loaded(handle: Any, name: str) -> np.ndarray:
    return _as_float(handle.get_tensor(name))


def _bfloat16(file: pathlib.Path, name: str) -> np.ndarray:
    # NumPy has no bfloat16; it is the upper half of a float32.
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[name]
        start, end = entry["data_offsets"]
        stream.seek(8 + length + start)
        half = np.frombuffer(stream.read(end - start), "<u2")
    return (half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def open_torch(file: pathlib.Path) -> dict[str, Stored]:
    """Opens a PyTorch state dict with the weights-only reader, which builds tensors and runs nothing.

    A state dict inside a training checkpoint (``model``, ``state_dict`` or ``model_state_dict``) is
    taken out, and the prefix ``module.`` of data-parallel training is removed.

    Raises:
      PretrainedError: no PyTorch, a damaged file, anything but tensors in it, or code to run.
    """
    torch = _torch(file)
    try:
        # Only zip archives, the format since PyTorch 1.6, can be read piece by piece.
        tree = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # unpickling and zip errors of many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PretrainedError(
            f"{file}: refused by the weights-only reader, nothing in it was run ({first}); "
            + source_lib.if_pointer(file)
        ) from error
    tree = _state_dict(tree, file, torch)
    if all(name.startswith("module.") for name in tree):
        tree = {name.removeprefix("module."): value for name, value in tree.items()}
    return {
        name: Stored(tuple(v.shape), str(v.dtype), file.name, functools.partial(_from_torch, v))
        for name, v in tree.items()
    }


def _torch(file: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(f"{file}: reading PyTorch's format needs PyTorch: pip install rahf[torch]") from error
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 6):  # CVE-2025-32434: older weights-only readers could be made to run code
        raise PretrainedError(f"{file}: PyTorch {torch.__version__} cannot read it safely; 2.6 or later can")
    return torch


def _state_dict(tree: Any, file: pathlib.Path, torch: Any) -> dict[str, Any]:
    inside = [
        k
        for k in ("model", "state_dict", "model_state_dict")
        if isinstance(tree, dict) and isinstance(tree.get(k), dict)
    ]
    if len(inside) == 1:
        tree = tree[inside[0]]
    if not isinstance(tree, dict) or not tree:
        raise PretrainedError(f"{file}: expected a state dict (names to tensors), found {type(tree).__name__}")
    foreign = [name for name, value in tree.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise PretrainedError(f"{file}: not a state dict: {source_lib.few(foreign)} are not tensors")
    return tree


def _from_torch(tensor: Any) -> np.ndarray:
    return (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).numpy()


def from_arrays(arrays: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, Stored]:
    """The same view of tensors that are in memory already."""
    return {n: Stored(tuple(a.shape), str(a.dtype), where, functools.partial(_as_float, a)) for n, a in arrays.items()}


def _as_float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
