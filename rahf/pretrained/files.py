"""Opens the weights of published checkpoints without ever running a pickle.

The weights lie in `model.safetensors`, in several such files with an index, or in PyTorch's `.bin`. Tensors are opened
lazily, so that a network is never in memory twice.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core.errors import PretrainedError
from rahf.pretrained.source import WeightsSource, few, if_pointer, read_json


class StoredTensor(NamedTuple):
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: str  # as the file names it, for messages
    file: str  # name of the file, for messages
    load: Callable[[], np.ndarray]  # returns float dtypes as float32, others unchanged


def open_folder(source: WeightsSource) -> dict[str, StoredTensor]:
    """Opens the weights of a checkpoint folder; safetensors are preferred.

    Raises:
      PretrainedError: no weights, a part of them missing, or a file that cannot be read.
    """
    return open_stem(source.folder, "model", "pytorch_model")


def open_stem(
    folder: pathlib.Path, safe: str, pickled: str, variants: Sequence[str] = ("",)
) -> dict[str, StoredTensor]:
    """Opens weights that are called `safe`.safetensors or `pickled`.bin, whole or in parts with an index.

    Args:
      folder: holds them.
      safe, pickled: names of the files without endings.
      variants: that are taken, the preferred first: "" for ``model.safetensors``, "fp16" for
        ``model.fp16.safetensors``.

    Raises:
      PretrainedError: no weights, a part of them missing, or a file that cannot be read.
    """
    for variant in variants:
        for stem, ending, open_file in ((safe, "safetensors", open_safetensors), (pickled, "bin", open_torch)):
            for index in _index_names(stem, ending, variant):
                if (folder / index).is_file():
                    return _open_parts(folder / index, open_file)
            single = ".".join(filter(None, (stem, variant, ending)))
            if (folder / single).is_file():
                return open_file(folder / single)
    parts = sorted(p.name for p in folder.glob("*-of-*.*"))
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    why = (
        f"{parts[0]} is one part of several, and the index that names them is missing"
        if parts
        else f"found {names or 'nothing'}"
    )
    of_variants = " or ".join(f"variant {variant}" for variant in variants if variant)
    also = f", {of_variants}" if of_variants else ""
    raise PretrainedError(
        f"{folder}: no weights ({safe}.safetensors or {pickled}.bin{also}, or an index of parts): {why}"
    )


def _index_names(stem: str, ending: str, variant: str) -> list[str]:
    """Names of the list of parts; different versions of the libraries put the variant in different places."""
    if not variant:
        return [f"{stem}.{ending}.index.json"]
    return [
        f"{stem}.{ending}.index.{variant}.json",
        f"{stem}.{variant}.{ending}.index.json",
        f"{stem}.{ending}.{variant}.index.json",
    ]


def _open_parts(
    index: pathlib.Path, open_file: Callable[[pathlib.Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(v, str) for v in file_of.values()):
        raise PretrainedError(f"{index}: has no weight_map from tensor names to file names")
    parts = sorted(set(file_of.values()))
    foreign = [p for p in parts if pathlib.PurePath(p).name != p]
    if foreign:
        raise PretrainedError(f"{index}: names {foreign[0]!r}, which is not a file of the same folder; not opened")
    absent = [p for p in parts if not (index.parent / p).is_file()]
    if absent:
        lost = sorted(name for name, part in file_of.items() if part in absent)
        raise PretrainedError(
            f"{index}: {len(absent)} of {len(parts)} files are missing: {', '.join(absent)}; "
            f"they hold {len(lost)} of {len(file_of)} tensors, such as {lost[0]}. "
            "Download them into the same folder."
        )
    tensors: dict[str, StoredTensor] = {}
    for part in parts:
        file = index.parent / part
        of_part = open_file(file)
        lost = sorted(name for name, home in file_of.items() if home == part and name not in of_part)
        if lost:
            raise PretrainedError(f"{file}: lacks {len(lost)} tensors that {index.name} promises: " + few(lost))
        twice = sorted(set(tensors) & set(of_part))
        if twice:
            raise PretrainedError(f"{file}: holds tensors that another part holds too: {few(twice)}")
        tensors.update(of_part)
    return tensors


def open_file(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Opens one file, by its name safetensors or a PyTorch state dict. Raises PretrainedError as the two readers."""
    return open_safetensors(file) if file.suffix == ".safetensors" else open_torch(file)


def open_safetensors(file: pathlib.Path) -> dict[str, StoredTensor]:
    """Opens one safetensors file. Raises PretrainedError if it is damaged or incomplete."""
    import safetensors

    try:
        handle = safetensors.safe_open(file, framework="np")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{file}: not a complete safetensors file ({error}); {if_pointer(file)}") from error
    tensors = {}
    for name in handle.keys():
        piece = handle.get_slice(name)
        dtype = piece.get_dtype()
        load = functools.partial(*((_read_bfloat16, file) if dtype == "BF16" else (_read, handle)), name)
        tensors[name] = StoredTensor(tuple(piece.get_shape()), dtype, file.name, load)
    return tensors


def _read(handle: Any, name: str) -> np.ndarray:
    return _as_float(handle.get_tensor(name))


def _read_bfloat16(file: pathlib.Path, name: str) -> np.ndarray:
    # NumPy has no bfloat16; it is the upper half of a float32.
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[name]
        start, end = entry["data_offsets"]
        stream.seek(8 + length + start)
        half = np.frombuffer(stream.read(end - start), "<u2")
    return (half.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def open_torch(file: pathlib.Path) -> dict[str, StoredTensor]:
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
            f"{file}: refused by the weights-only reader, nothing in it was run ({first}); " + if_pointer(file)
        ) from error
    tree = _state_dict(tree, file, torch)
    if all(name.startswith("module.") for name in tree):
        tree = {name.removeprefix("module."): value for name, value in tree.items()}
    return {
        name: StoredTensor(tuple(v.shape), str(v.dtype), file.name, functools.partial(_from_torch, v))
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
    keys = ("model", "state_dict", "model_state_dict")
    inside = [k for k in keys if isinstance(tree, dict) and isinstance(tree.get(k), dict)]
    if len(inside) == 1:
        tree = tree[inside[0]]
    if not isinstance(tree, dict) or not tree:
        raise PretrainedError(f"{file}: expected a state dict (names to tensors), found {type(tree).__name__}")
    foreign = [name for name, value in tree.items() if not isinstance(value, torch.Tensor)]
    if foreign:
        raise PretrainedError(f"{file}: not a state dict: {few(foreign)} are not tensors")
    return tree


def _from_torch(tensor: Any) -> np.ndarray:
    return (tensor.detach().float() if tensor.is_floating_point() else tensor.detach()).numpy()


def from_arrays(arrays: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, StoredTensor]:
    """Tensors that are in memory already, as if they were in a file `where`."""
    return {
        name: StoredTensor(tuple(array.shape), str(array.dtype), where, functools.partial(_as_float, array))
        for name, array in arrays.items()
    }


def _as_float(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array
