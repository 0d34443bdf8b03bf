"""A spectral volume in a file, for people and other programs: ``.npz`` or ``.safetensors``.

Both hold one array `spectrum`, float32 [K,h,w,4]: for each frequency the real and imaginary part of the displacement
in x, then in y, in pixels of the h x w grid; `numpy.fft.rfft` over `frames` frames, not scaled. Beside it stand
`frames` and `fps`: arrays without axes in an npz, metadata in a safetensors file.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from rahf.core import files
from rahf.core.errors import DatasetError

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

#: Frames of a window, terms that are kept, and the rate (Li et al. 2024).
FRAMES, TERMS, FPS = 150, 16, 30.0
_MAX_BYTES = 2 << 30


class SpectralVolume(NamedTuple):
    """The motion of a picture by frequency.

    Attributes:
      spectrum: complex64 [K,h,w,2], displacement (x, y) in pixels of this grid.
      frames: T, after which the motion repeats.
      fps: frames per second.
    """

    spectrum: Complex[np.ndarray, "k h w 2"]
    frames: int = FRAMES
    fps: float = FPS

    @property
    def period(self) -> float:
        """Seconds after which the motion repeats."""
        return self.frames / self.fps

    @property
    def channels(self) -> Float[np.ndarray, "k h w 4"]:
        """Real and imaginary part of x, then of y, float32."""
        return to_channels(self.spectrum)


def to_channels(spectrum: Complex[np.ndarray, "*b h w 2"]) -> Float[np.ndarray, "*b h w 4"]:
    """Complex x and y → four real channels, float32."""
    parts = np.stack([spectrum.real, spectrum.imag], -1)
    return parts.reshape(*spectrum.shape[:-1], 4).astype(np.float32)


def from_channels(channels: Float[np.ndarray, "*b h w 4"]) -> Complex[np.ndarray, "*b h w 2"]:
    """The inverse of `to_channels`, complex64."""
    pairs = np.asarray(channels, np.float32).reshape(*channels.shape[:-1], 2, 2)
    return pairs[..., 0] + 1j * pairs[..., 1]


def of_texture(texture: Float[np.ndarray, "t h w 2"], terms: int = TERMS, fps: float = FPS) -> SpectralVolume:
    """The first terms of the Fourier transform of displacements over time."""
    spectrum = np.fft.rfft(texture.astype(np.float32), axis=0)[:terms].astype(np.complex64)
    return SpectralVolume(spectrum, texture.shape[0], fps)


def save(path: str | os.PathLike, volume: SpectralVolume) -> None:
    """Writes a file in the form that its name says.

    Raises:
      DatasetError: a name that ends in neither .npz nor .safetensors.
      OSError: it cannot be written.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, spectrum=volume.channels, frames=volume.frames, fps=volume.fps)
        files.write_atomically(path, buffer.getvalue())
    elif suffix == ".safetensors":
        metadata = {"frames": json.dumps(volume.frames), "fps": json.dumps(volume.fps)}
        files.write_atomically(path, safetensors.numpy.save({"spectrum": volume.channels}, metadata))
    else:
        raise DatasetError(f"{os.fspath(path)}: a spectral volume is written as .npz or .safetensors; name such a file")


def load(path: str | os.PathLike) -> SpectralVolume:
    """Reads a file that `save` wrote, or another program in the same form; `frames` and `fps` may be missing.

    Raises:
      DatasetError: missing, damaged, of another form, with numbers that are not finite, or larger than 2 GB.
    """
    name = os.fspath(path)
    form = "expected float [K,h,w,4] `spectrum` in an .npz or .safetensors file, as `rahf prepare motion` writes"
    try:
        with files.open_regular(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"{name}: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise DatasetError(f"{name}: more than {_MAX_BYTES >> 30} GB, too large for a spectral volume")
    try:
        spectrum, frames, fps = (_npz if data[:2] == b"PK" else _safetensors)(data)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        zipfile.BadZipFile,
        EOFError,
        safetensors.SafetensorError,
    ) as error:
        raise DatasetError(f"{name}: no spectral volume ({' '.join(str(error).split())[:200]}); {form}") from error
    if spectrum.dtype.kind != "f" or spectrum.ndim != 4 or spectrum.shape[-1] != 4 or not spectrum.size:
        raise DatasetError(f"{name}: `spectrum` is {spectrum.dtype} {[*spectrum.shape]}; {form}")
    if not np.isfinite(spectrum).all():
        raise DatasetError(f"{name}: `spectrum` holds NaN or infinity; make it again")
    if not (0 < spectrum.shape[0] <= frames // 2 + 1) or not (np.isfinite(fps) and fps > 0):
        raise DatasetError(
            f"{name}: {spectrum.shape[0]} terms of {frames} frames at {fps} per second; expected at most "
            f"{max(frames, 0) // 2 + 1} terms and a positive rate"
        )
    return SpectralVolume(from_channels(spectrum), frames, fps)


def _npz(data: bytes) -> tuple[np.ndarray, int, float]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        frames = int(archive["frames"]) if "frames" in archive else FRAMES
        return archive["spectrum"], frames, float(archive["fps"]) if "fps" in archive else FPS


def _safetensors(data: bytes) -> tuple[np.ndarray, int, float]:
    spectrum = safetensors.numpy.load(data)["spectrum"]
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return spectrum, int(json.loads(metadata.get("frames", str(FRAMES)))), float(metadata.get("fps", FPS))
