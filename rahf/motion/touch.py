"""A page in which a photograph is dragged with mouse or finger and swings: one file that asks for nothing else.

The page holds the photograph (JPEG), the mode shapes as textures of 8 bits, and for every mode the step of the exact
exponential integrator (`rahf.motion.modal.exact_step`) as numbers, so that it swings as `modal.simulate` does. While it
is held, the pixel under the finger follows the finger (`pull_state`); let go, every mode swings freely.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.video.volume import SpectralVolume
from rahf.core import files
from rahf.core.errors import ArgumentError
from rahf.images.resize import resize
from rahf.motion import modal
from rahf.motion.modal import Modes, State

#: Largest page in bytes.
MAX_BYTES = 15_000_000
#: Longer side of the textures of modes. WebGL 1 numbers up to 65,536 vertices.
GRID = 160
#: Seconds of a step.
STEP = 1 / 120
_QUALITY = 90  # of the photograph
_TEMPLATE = pathlib.Path(__file__).with_name("templates") / "touch.html"


def pull_state(modes: Modes, row: int, column: int, pull: tuple[float, float]) -> State:
    """The state in which the pixel has been pulled by `pull` (x, y), nothing moving.

    Modes take part in proportion to how they move the pixel, ``q_f ∝ d · conj S_f(p0)``, as they do in the recorded
    motion; the pixel moves by exactly `pull` along the direction of the pull.
    """
    shape = modes.shapes[:, row, column].astype(np.complex128)
    pull = np.asarray(pull, np.float64)
    projection = shape.conj() @ pull
    along, length = float((np.abs(projection) ** 2).sum()), float(pull @ pull)
    if along <= 1e-12 * max(length, 1e-12) or not length:
        return modal.at_rest(modes)
    return State(projection * (length / along), np.zeros_like(projection))


def page_modes(
    volume: SpectralVolume, size: tuple[int, int], magnify: float, mask: np.ndarray | None, damping: float
) -> Modes:
    """The modes on the page's grid, displacements in pixels of the photograph.

    Args:
      volume: of the photograph.
      size: height and width of the photograph.
      magnify: factor of the displacements.
      mask: float32 [H,W] in [0,1]; None: all moves.
      damping: share of critical damping.
    """
    if not (np.isfinite(damping) and 0 < damping < 1):
        raise ArgumentError(f"--damping {damping}: expected a share of critical damping between 0 and 1")
    modes = modal.modes_of(volume.spectrum, volume.frames, volume.fps, damping)
    (height, width), (rows, columns) = size, modes.shapes.shape[1:3]
    factor = GRID / max(height, width)
    grid = max(2, min(rows, round(height * factor))), max(2, min(columns, round(width * factor)))
    # Amplitudes of a swing: term k of the transform is T/2 times that of its sinusoid.
    shapes = modes.shapes * (2 * magnify / volume.frames * np.array([width / columns, height / rows]))
    parts = np.stack([shapes.real, shapes.imag], -1).reshape(len(shapes), rows, columns, 4).astype(np.float32)
    parts = np.stack([resize(part, grid) for part in parts])
    if mask is not None:
        parts = parts * resize(mask, grid)[..., None]
    return modes._replace(shapes=(parts[..., 0::2] + 1j * parts[..., 1::2]).astype(np.complex64))


def write_page(
    path: str | os.PathLike,
    picture: np.ndarray,
    volume: SpectralVolume,
    magnify: float = 1.0,
    mask: np.ndarray | None = None,
    damping: float = 0.06,
    name: str = "photograph",
) -> int:
    """Writes the page; returns its size in bytes.

    Args:
      path: ends in .html.
      picture: uint8 [H,W,3].
      volume, magnify, mask, damping: as of `page_modes`.
      name: title of the page.

    Raises:
      ArgumentError: another name, numbers out of range, or a page of more than `MAX_BYTES`; says which size fits.
    """
    if pathlib.Path(path).suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"{os.fspath(path)}: the page is HTML; name a file that ends in .html")
    if not (np.isfinite(magnify) and magnify > 0):
        raise ArgumentError(f"magnify: expected a factor above 0, found {magnify}")
    height, width = picture.shape[:2]
    modes = page_modes(volume, (height, width), magnify, mask, damping)
    text = _TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("{{TITLE}}", html.escape(name)).replace("{{DATA}}", _data(picture, modes))
    content = text.encode()
    if len(content) > MAX_BYTES:
        side = int(max(height, width) * (MAX_BYTES / len(content)) ** 0.5 * 0.95) // 16 * 16
        raise ArgumentError(
            f"{os.fspath(path)}: the page of {width} x {height} pixels would have {len(content) / 1e6:.1f} MB, more "
            f"than {MAX_BYTES / 1e6:.0f}; --max-side {side} should fit"
        )
    files.write_atomically(path, content)
    return len(content)


def _data(picture: np.ndarray, modes: Modes) -> str:
    """The page's data as JSON that cannot end a script element."""
    height, width = picture.shape[:2]
    channels = np.stack([modes.shapes.real, modes.shapes.imag], -1).reshape(*modes.shapes.shape[:-1], 4)
    scales = np.maximum(np.abs(channels).max((1, 2, 3)), 1e-9)
    texels = np.round(channels / scales[:, None, None, None] * 127).astype(np.int8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    step = modal.exact_step(modes, STEP)
    motion = np.abs(modes.shapes).sum((0, 3))
    values = {
        "width": width,
        "height": height,
        "columns": modes.shapes.shape[2],
        "rows": modes.shapes.shape[1],
        "picture": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "shapes": base64.b64encode(texels.tobytes()).decode(),
        "depth": base64.b64encode(np.round(motion / max(motion.max(), 1e-9) * 255).astype(np.uint8).tobytes()).decode(),
        "scales": scales.tolist(),
        "angular": modes.angular.tolist(),
        "transition": step.transition.reshape(-1, 4).tolist(),
        "step": STEP,
        "peaks": np.abs(modes.shapes).max((1, 2, 3)).tolist(),
        "limit": 0.25 * max(height, width),
    }
    return json.dumps(values).replace("<", "\\u003c")
