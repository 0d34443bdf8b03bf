"""A critic and a saliency model look at the frames of a video.

Where and when does a motion make the picture implausible, and does it draw the eye? A saliency model is handed over
loaded: this package and `rahf.saliency` stand on one floor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from rahf.core import files
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.critic import loading
from rahf.images.overlay import overlay

#: Frames that are judged, evenly spread over a video.
JUDGED = 24
_MOVING = 0.1  # share of the largest mean motion from which on a pixel counts as moving
_SIZE = 640, 220  # of a chart in pixels
_COLOURS = ((30, 90, 200), (200, 110, 0), (20, 140, 80), (150, 40, 150))


class SaliencyModel(Protocol):
    """Says where people look; `rahf.saliency.predictor.Saliency` is one."""

    def __call__(self, images: Sequence[np.ndarray]) -> Sequence[Any]:
        """For each uint8 [h,w,3] an object whose `density` is float32 [h,w] and sums to 1."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What is to be said of the frames of a video, and where.

    Attributes:
      path: PNG to write; the numbers go into a JSON file beside it.
      critic: what `rahf.load` takes; None: no critic.
      prompt: that the critic judges all frames by.
      saliency: a loaded saliency model; None: none.
    """

    path: str | os.PathLike
    critic: str | os.PathLike | None = None
    prompt: str = ""
    saliency: SaliencyModel | None = None

    def check(self) -> None:
        """Raises ArgumentError: another kind of file, an empty prompt, or neither critic nor saliency model."""
        if pathlib.Path(self.path).suffix.lower() != ".png":
            raise ArgumentError(f"{os.fspath(self.path)}: the report is a picture; name a file that ends in .png")
        if self.critic is None and self.saliency is None:
            raise ArgumentError("--report: nobody looks at the frames; give a critic and --prompt, or a saliency model")
        if self.critic is not None and not self.prompt.strip():
            raise ArgumentError("--prompt: a critic judges pictures by a prompt; describe the photograph")


class Critique:
    """Keeps some frames of a video, and has them judged together."""

    def __init__(self, report: Report, frames: int, motion: np.ndarray):
        """Loads the critic, so that a wrong path ends the work before it begins.

        Args:
          report: what is wanted.
          frames: of the video.
          motion: float [h,w], the mean motion of each pixel.

        Raises:
          ArgumentError: as `Report.check`.
          CheckpointError, ExportError: no critic there.
        """
        report.check()
        self._report = report
        self._critic = None if report.critic is None else loading.load(report.critic)
        self._moving = motion >= _MOVING * max(float(motion.max()), 1e-9)
        self._wanted = {int(number) for number in np.linspace(0, frames - 1, min(frames, JUDGED)).round()}
        self._seen, self._kept = 0, []

    def add(self, pixels: np.ndarray) -> None:
        """The next frame, uint8 [h,w,3]."""
        if self._seen in self._wanted:
            self._kept.append((self._seen, pixels))
        self._seen += 1

    def write(self, fps: float) -> dict[str, object]:
        """Judges, writes charts and the frames that stand out as a PNG, and the numbers beside it as JSON.

        Args:
          fps: of the video.

        Returns:
          The numbers by frame: scores by name and mean of each heatmap (what the critic does not predict is left out);
          of saliency see `attention`.
        """
        numbers, frames = [number for number, _ in self._kept], [pixels for _, pixels in self._kept]
        seconds, path = [number / fps for number in numbers], self._report.path
        values: dict[str, object] = {"frames": numbers, "seconds": seconds}
        pictures: list[np.ndarray] = []
        if self._critic is not None:
            values["prompt"] = self._report.prompt
            self._judge(frames, seconds, values, pictures)
        if self._report.saliency is not None:
            densities = [one.density for one in self._report.saliency(frames)]
            lines = attention(densities, self._moving)
            pictures.append(chart("where people look", seconds, lines))
            turned = int(lines["change"].argmax())
            pictures.append(overlay(frames[turned], densities[turned] / densities[turned].max(), "saliency"))
            values["saliency"] = {name: line.tolist() for name, line in lines.items()}
        with files.replacing(path) as unfinished:
            stacked(pictures).save(unfinished, "PNG")
        files.write_atomically(pathlib.Path(path).with_suffix(".json"), json.dumps(values, indent=2) + "\n")
        return values

    def _judge(
        self,
        frames: list[np.ndarray],
        seconds: list[float],
        values: dict[str, object],
        pictures: list[np.ndarray],
    ) -> None:
        """Adds what the critic says to the numbers and pictures."""
        prediction = self._critic(frames, self._report.prompt, progress=False)
        scores = _finite(dict(zip(SCORES, np.asarray(prediction.scores).T)))
        maps = {} if prediction.heatmaps is None else dict(zip(HEATMAPS, np.moveaxis(prediction.heatmaps, -1, 0)))
        means = _finite({name: heatmaps.mean((1, 2)) for name, heatmaps in maps.items()})
        pictures += [chart("scores, 1 is best", seconds, scores)] if scores else []
        pictures += [chart("mean of the heatmaps, 0 is best", seconds, means)] if means else []
        if "implausibility" in means:
            worst = int(means["implausibility"].argmax())
            pictures.append(overlay(frames[worst], maps["implausibility"][worst], "implausibility"))
        values["scores"] = {name: line.tolist() for name, line in scores.items()}
        values["heatmap_means"] = {name: line.tolist() for name, line in means.items()}


def attention(densities: Sequence[np.ndarray], moving: np.ndarray) -> dict[str, np.ndarray]:
    """How motion draws the eye, over frames.

    Args:
      densities: float [h,w] each, sum 1; the first one is the photograph at rest.
      moving: bool [h,w], what moves.

    Returns:
      ``on motion``: share of the density on what moves, at its place in the photograph; ``moving area``: its share of
      the picture, what an eye without preference would give; ``change``: half the sum of absolute differences from the
      first density, 0: the same, 1: nothing in common. float64 [n] each, in [0,1].
    """
    stack = np.stack([density.astype(np.float64) / density.sum(dtype=np.float64) for density in densities])
    return {
        "on motion": stack[:, moving].sum(1),
        "moving area": np.full(len(stack), moving.mean()),
        "change": 0.5 * np.abs(stack - stack[0]).sum((1, 2)),
    }


def chart(title: str, seconds: Sequence[float], lines: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lines over time, values from 0 to 1, uint8 [h,w,3]."""
    (width, height), margin = _SIZE, 28
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    right, bottom = width - 150, height - margin
    place = lambda time, value: (  # noqa: E731
        margin + (right - margin) * time / max(seconds[-1], 1e-9),
        bottom - (bottom - margin) * float(np.clip(value, 0, 1)),
    )
    draw.text((margin, 6), title, fill="black")
    for value in (0.0, 0.5, 1.0):
        y = place(0, value)[1]
        draw.line([(margin, y), (right, y)], fill=(220, 220, 220))
        draw.text((4, y - 6), f"{value:g}", fill="black")
    draw.text((margin, bottom + 8), "0 s", fill="black")
    draw.text((right - 30, bottom + 8), f"{seconds[-1]:.3g} s", fill="black")
    for number, (name, values) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [place(time, value) for time, value in zip(seconds, values)]
        draw.line(points * (2 if len(points) == 1 else 1), fill=colour, width=2)
        draw.text((right + 10, margin + 18 * number), f"{name} {values.mean():.2f}", fill=colour)
    return np.asarray(image)


def stacked(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures one below the other on white; an empty white picture for none."""
    if not pictures:
        return Image.new("RGB", _SIZE, "white")
    width = max(picture.shape[1] for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.shape[0] for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, top))
        top += picture.shape[0]
    return sheet


def _finite(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that the critic predicts; the others are NaN."""
    return {name: array for name, array in values.items() if np.isfinite(array).all()}
