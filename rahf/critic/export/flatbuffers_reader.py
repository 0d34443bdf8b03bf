"""The reading half of the `flatbuffers` package, as far as `jax.export` uses it.

`jax.export.deserialize` needs that package, which JAX does not install. Reading an exported model must work
with what JAX brings, so this stands in where the package is missing. Format: https://flatbuffers.dev/internals,
little endian, offsets relative to where they are stored.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import types
from typing import Any

import numpy as np


class _Scalar:
    """A number type: how it is unpacked, and as NumPy names it."""

    def __init__(self, code: str, dtype: str):
        self.packer_type = struct.Struct("<" + code)
        self.bytewidth, self.py_type = self.packer_type.size, bool if code == "?" else int
        self.dtype = np.dtype(dtype)


_SCALARS = {
    "BoolFlags": _Scalar("?", "?"),
    "Uint8Flags": _Scalar("B", "<u1"),
    "Uint16Flags": _Scalar("H", "<u2"),
    "Uint32Flags": _Scalar("I", "<u4"),
    "Uint64Flags": _Scalar("Q", "<u8"),
    "Int8Flags": _Scalar("b", "<i1"),
    "Int16Flags": _Scalar("h", "<i2"),
    "Int32Flags": _Scalar("i", "<i4"),
    "Int64Flags": _Scalar("q", "<i8"),
    "SOffsetTFlags": _Scalar("i", "<i4"),
    "UOffsetTFlags": _Scalar("I", "<u4"),
    "VOffsetTFlags": _Scalar("H", "<u2"),
}
_OFFSET, _SIGNED, _SMALL = (_SCALARS[n].packer_type for n in ("UOffsetTFlags", "SOffsetTFlags", "VOffsetTFlags"))


def _get(packer: struct.Struct, buffer: Any, at: int) -> Any:
    return packer.unpack_from(buffer, at)[0]


class _Table:
    """A table at position `Pos` of `Bytes`."""

    def __init__(self, buffer: Any, position: int):
        self.Bytes, self.Pos = buffer, position

    def Offset(self, field: int) -> int:
        """Where a field lies, relative to the table; 0 if it is not there."""
        fields = self.Pos - _get(_SIGNED, self.Bytes, self.Pos)
        return _get(_SMALL, self.Bytes, fields + field) if field < _get(_SMALL, self.Bytes, fields) else 0

    def Indirect(self, at: int) -> int:
        """Follows the offset stored at `at`."""
        return at + _get(_OFFSET, self.Bytes, at)

    def String(self, at: int) -> bytes:
        """The text behind the offset stored at `at`."""
        at = self.Indirect(at)
        return bytes(self.Bytes[at + 4 : at + 4 + _get(_OFFSET, self.Bytes, at)])

    def VectorLen(self, field: int) -> int:
        """Number of elements of a vector."""
        return _get(_OFFSET, self.Bytes, self.Indirect(field + self.Pos))

    def Vector(self, field: int) -> int:
        """Where the elements of a vector begin."""
        return self.Indirect(field + self.Pos) + 4

    def Get(self, kind: _Scalar, at: int) -> Any:
        """The number at `at`."""
        return kind.py_type(_get(kind.packer_type, self.Bytes, at))

    def GetVectorAsNumpy(self, kind: _Scalar, field: int) -> np.ndarray:
        """A vector of numbers, without copying."""
        return np.frombuffer(self.Bytes, kind.dtype, self.VectorLen(field), self.Vector(field))


def ensure() -> None:
    """Makes `import flatbuffers` work for `jax.export`; does nothing where the package is installed."""
    if "flatbuffers" in sys.modules or importlib.util.find_spec("flatbuffers") is not None:
        return
    package = types.ModuleType("flatbuffers", __doc__)
    package.__path__ = []
    for name, content in {
        "number_types": _SCALARS,
        "table": {"Table": _Table},
        "encode": {"Get": _get},
        "packer": {"uoffset": _OFFSET},
        "compat": {"import_numpy": lambda: np},
    }.items():
        module = types.ModuleType(f"flatbuffers.{name}")
        vars(module).update(content)
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    sys.modules["flatbuffers"] = package


def forget() -> None:
    """Takes the stand-in away from `import` again: whoever asks for the package must not find half of one.

    JAX keeps the modules that it has imported.
    """
    package = sys.modules.get("flatbuffers")
    if package is not None and package.__doc__ == __doc__:
        for name in [n for n in sys.modules if n.split(".")[0] == "flatbuffers"]:
            del sys.modules[name]
