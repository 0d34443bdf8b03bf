"""A look at a motion in one picture: a slice over x and time, flow as colours, and how much each pixel moves."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def flow_colours(flow: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Direction as hue, length as saturation: uint8 [h,w,3]; white stands still.

    Args:
      flow: float [h,w,2], (x, y) in pixels.
      largest: length of full saturation; None: the 99th percentile.
    """
    length, angle = np.linalg.norm(flow, axis=-1), np.arctan2(flow[..., 1], flow[..., 0])
    largest = max(float(np.percentile(length, 99)) if largest is None else largest, 1e-6)
    hue = np.round((angle / (2 * np.pi) % 1.0) * 255).astype(np.uint8)
    saturation = np.round(np.clip(length / largest, 0, 1) * 255).astype(np.uint8)
    hsv = np.stack([hue, saturation, np.full_like(hue, 255)], -1)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


class Preview:
    """Collects a row of every frame, and draws the panels."""

    def __init__(self, importance: np.ndarray):
        """Args: the mean motion of every pixel, [h,w]; the row that moves most is followed."""
        self.row = int(np.asarray(importance).sum(1).argmax())
        self._importance, self._rows = np.asarray(importance), []

    def add(self, pixels: np.ndarray) -> None:
        """Keeps the row of a frame, uint8 [h,w,3]."""
        self._rows.append(pixels[self.row].copy())

    def png(self, picture: np.ndarray, flow: np.ndarray) -> bytes:
        """Picture with the row marked, flow, mean motion, and the slice (time runs down), one below the other."""
        marked = picture.copy()
        marked[self.row] = (255, 0, 0)
        grey = np.clip(self._importance / max(float(self._importance.max()), 1e-6) * 255, 0, 255).astype(np.uint8)
        panels = [marked, flow_colours(flow), np.repeat(grey[..., None], 3, -1), np.stack(self._rows)]
        gap = np.full((4, picture.shape[1], 3), 255, np.uint8)
        stacked = np.concatenate([part for panel in panels for part in (panel, gap)][:-1])
        buffer = io.BytesIO()
        Image.fromarray(stacked).save(buffer, "PNG")
        return buffer.getvalue()
