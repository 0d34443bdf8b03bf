"""A critic looks at the frames of a video: where and when a motion makes the picture implausible."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from rahf.core import files
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.critic import loading
from rahf.images.overlay import overlay

#: Frames that are judged, evenly spread over a video.
JUDGED = 24
_SIZE = 640, 220  # of a chart in pixels
_COLOURS = ((30, 90, 200), (200, 110, 0), (20, 140, 80), (150, 40, 150))


class Critique:
    """Keeps some frames of a video, and has them judged together."""

    def __init__(self, critic: str | os.PathLike, prompt: str, frames: int):
        """Loads the critic, so that a wrong path ends the work before it begins.

        Args:
          critic: what `rahf.load` takes.
          prompt: that all frames are judged by.
          frames: of the video.

        Raises:
          ArgumentError: an empty prompt.
          CheckpointError, ExportError: no critic there.
        """
        if not prompt.strip():
            raise ArgumentError("--prompt: a critic judges pictures by a prompt; describe the photograph")
        self.critic, self.prompt = loading.load(critic), prompt
        self._wanted = {int(number) for number in np.linspace(0, frames - 1, min(frames, JUDGED)).round()}
        self._seen, self._kept = 0, []

    def add(self, pixels: np.ndarray) -> None:
        """The next frame, uint8 [h,w,3]."""
        if self._seen in self._wanted:
            self._kept.append((self._seen, pixels))
        self._seen += 1

    def write(self, path: str | os.PathLike, fps: float) -> dict[str, object]:
        """Judges, writes charts and the least plausible frame as a PNG, and the numbers beside it as JSON.

        Args:
          path: ends in .png.
          fps: of the video.

        Returns:
          The numbers: times, scores by name, mean of each heatmap; what the critic does not predict is left out.
        """
        numbers, frames = [number for number, _ in self._kept], [pixels for _, pixels in self._kept]
        prediction = self.critic(frames, self.prompt, progress=False)
        seconds = [number / fps for number in numbers]
        scores = _finite(dict(zip(SCORES, np.asarray(prediction.scores).T)))
        maps = {} if prediction.heatmaps is None else dict(zip(HEATMAPS, np.moveaxis(prediction.heatmaps, -1, 0)))
        means = _finite({name: values.mean((1, 2)) for name, values in maps.items()})
        picture = [chart("scores, 1 is best", seconds, scores)] if scores else []
        picture += [chart("mean of the heatmaps, 0 is best", seconds, means)] if means else []
        if "implausibility" in means:
            worst = int(means["implausibility"].argmax())
            picture.append(overlay(frames[worst], maps["implausibility"][worst], "implausibility"))
        values = {"prompt": self.prompt, "frames": numbers, "seconds": seconds}
        values |= {"scores": {name: v.tolist() for name, v in scores.items()}}
        values |= {"heatmap_means": {name: v.tolist() for name, v in means.items()}}
        with files.replacing(path) as unfinished:
            stacked(picture).save(unfinished, "PNG")
        files.write_atomically(pathlib.Path(path).with_suffix(".json"), json.dumps(values, indent=2) + "\n")
        return values


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
