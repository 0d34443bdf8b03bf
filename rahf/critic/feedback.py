"""A critic's prediction for one image, for people: by name, at the image's own size, as a picture, as JSON."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from rahf.core import labels
from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.core.errors import NotPredicted
from rahf.critic import drawing
from rahf.critic.provenance import UNSPECIFIED, NamedScores, Provenance, warn_if_different
from rahf.images import regions as regions_lib
from rahf.images import run_lengths
from rahf.images.pictures import Picture
from rahf.images.regions import RegionOptions
from rahf.images.resize import resize
from rahf.text.prompts import EncodedPrompt

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float, Int, UInt8

#: From this value on a heatmap counts as marked in summaries: at least half of the annotators.
MARKED = 0.5
_MAX_REGIONS = 16


class Region(NamedTuple):
    """One connected region of a heatmap, in pixels of the upright original.

    Attributes:
      heatmap: name of the map (`rahf.core.batch.HEATMAPS`).
      box: left, top, right, bottom in whole pixels, right and bottom exclusive.
      area: number of pixels.
      share: of the image's area, 0..1.
      peak, mean: of the map's values in the region, 0..1.
      mass: sum of the map's values over the region's pixels.
    """

    heatmap: str
    box: tuple[int, int, int, int]
    area: int
    share: float
    peak: float
    mean: float
    mass: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict; numbers rounded to 6 digits."""
        return {
            "heatmap": self.heatmap,
            "box": list(self.box),
            "area": self.area,
            **{name: _number(getattr(self, name)) for name in ("share", "peak", "mean", "mass")},
        }


class Regions(tuple[Region, ...]):
    """The regions of a picture. Called with the name of a heatmap and a threshold it gives dicts, as in version 0."""

    def __new__(cls, regions: Iterable[Region], call: Callable[..., list[dict[str, Any]]]) -> Regions:
        self = super().__new__(cls, regions)
        self._call = call
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)  # without the feedback that it was made of

    def __call__(self, name: str, threshold: float = MARKED) -> list[dict[str, Any]]:
        return self._call(name, threshold)


@dataclasses.dataclass(frozen=True, eq=False)
class Feedback:
    """Rich feedback on one image-prompt pair.

    Attributes:
      name: path of the image, or "image 3".
      prompt: of the image.
      scores: by name (`rahf.core.batch.SCORES`), each in [0,1], high = good; NaN if the model does not predict it.
      words: of the prompt, by the dataset's split rule.
      word_probabilities: float32 [len(words)] in [0,1], how likely each word is misaligned; NaN for words
        that do not fit into the network's sequence.
      word_labels: int [len(words)], 1 = aligned, 0 = misaligned; words that do not fit count as aligned.
      decided_by: "probability" (above 0.5 is misaligned), "generation" (labels of the generated sequence), or
        "nothing" (the model does not judge words).
      network_heatmaps: float32 [S,S,2] in [0,1], order `rahf.core.batch.HEATMAPS`, as the network predicts them;
        NaN for one that it does not predict.
      image: uint8 [h,w,3], upright, for display; at most 1024 pixels on its longer side.
      size: height and width of the upright original in pixels.
      model_id: name of the model, training step, and hash of its parameters.
      notes: which words of the prompt were not read or not judged, in words.
      preprocessing_hash: of the preprocessing of images and prompts.
      weight_license: of the model's weights.
      percentiles: by name, share of the model's reference set below each score, 0..100; None without one.
    """

    name: str
    prompt: str
    scores: dict[str, float]
    words: list[str]
    word_probabilities: Float[np.ndarray, " n"]
    word_labels: Int[np.ndarray, " n"]
    decided_by: str
    network_heatmaps: Float[np.ndarray, "s s 2"]
    image: UInt8[np.ndarray, "h w 3"]
    size: tuple[int, int]
    model_id: str
    notes: list[str] = dataclasses.field(default_factory=list)
    preprocessing_hash: str = ""
    weight_license: str = UNSPECIFIED
    percentiles: dict[str, float] | None = None

    def compare(self, other: Feedback) -> dict[str, float]:
        """Scores minus those of another image, by name.

        Warns:
          rahf.critic.provenance.ModelMismatch: the other feedback comes from another model; the numbers have no
            common scale.
        """
        warn_if_different(Provenance(f.model_id, f.preprocessing_hash) for f in (self, other))
        return {name: self.scores[name] - other.scores[name] for name in SCORES}

    def score(self, score: str | Mapping[str, float] = "overall") -> float:
        """One score, high = good; or the weighted sum for weights by name.

        Raises:
          NotPredicted: the model does not predict the score, or one of those with a weight.
          ValueError: an unknown score; suggests the nearest.
        """
        value = float(labels.weighted(np.array([self.scores[name] for name in SCORES], np.float64), score))
        if math.isnan(value):
            raise NotPredicted(f"score: {self.model_id} does not predict {score!r}; see Feedback.scores")
        return value

    @functools.cached_property
    def heatmaps(self) -> dict[str, Float[np.ndarray, "h w"]]:
        """By name, float32 [h,w] in [0,1] at the size of the upright original (bilinear), high = bad."""
        return {name: self.heatmap(name) for name in HEATMAPS}

    def heatmap(self, name: str) -> Float[np.ndarray, "h w"]:
        """One heatmap, float32 [h,w], at the original's size, computed anew; NaN if the model does not predict it.

        Raises:
          UnknownNameError: no heatmap has this name; suggests the nearest.
        """
        return np.clip(resize(self._network_heatmap(name), self.size), 0, 1)

    def _network_heatmap(self, name: str) -> Float[np.ndarray, "s s"]:
        return self.network_heatmaps[:, :, labels.position("heatmap", name, HEATMAPS)]

    def has_heatmap(self, name: str) -> bool:
        """Whether the model predicts a heatmap."""
        return not np.isnan(self._network_heatmap(name)).any()

    def _predicted_heatmap(self, name: str) -> Float[np.ndarray, "s s"]:
        if not self.has_heatmap(name):
            raise NotPredicted(f"heatmap: {self.model_id} does not predict {name}; it has no regions")
        return self._network_heatmap(name)

    @property
    def misaligned_words(self) -> list[str]:
        """The words that the image does not show, in order."""
        return [word for word, label in zip(self.words, self.word_labels) if not label]

    @functools.cached_property
    def regions(self) -> Regions:
        """The connected regions of both heatmaps where at least half of the annotators are expected to mark.

        In order of HEATMAPS, within a heatmap the largest mass first. `find_regions` takes other thresholds.
        """
        predicted = [name for name in HEATMAPS if self.has_heatmap(name)]
        return Regions((one for name in predicted for one in self.find_regions(name)), self._old_regions)

    def find_regions(self, name: str, options: RegionOptions = RegionOptions()) -> list[Region]:
        """The connected regions of a heatmap, largest mass first.

        Args:
          name: of the heatmap.
          options: threshold, hysteresis, smallest area.

        Raises:
          NotPredicted: the model does not predict the heatmap.
        """
        values = self._predicted_heatmap(name)
        pixels = self.size[0] * self.size[1] / values.size  # of the original in one of the network's
        return [
            Region(
                heatmap=name,
                box=one.box(self.size, values.shape),
                area=round(one.area * pixels),
                share=one.area / values.size,
                peak=one.peak,
                mean=one.mass / one.area,
                mass=one.mass * pixels,
            )
            for one in regions_lib.components(values, options)
        ]

    def to_coco(self, image_id: int = 1, first: int = 1, options: RegionOptions = RegionOptions()) -> dict[str, Any]:
        """The regions of both heatmaps as COCO: an entry of ``images``, and those of ``annotations``.

        A segmentation is a mask at the original's size as run lengths; `score` is the highest value of the region.
        `rahf prepare regions` reads such files.

        Args:
          image_id: of the picture.
          first: `id` of the first region.
          options: as of `find_regions`.
        """
        height, width = self.size
        image = {"id": image_id, "file_name": self.name, "width": width, "height": height, "prompt": self.prompt}
        annotations: list[dict[str, Any]] = []
        for category, name in enumerate(HEATMAPS, 1):
            values = self.heatmap(name) if self.has_heatmap(name) else np.zeros((1, 1), np.float32)
            for one in regions_lib.components(values, options):
                mask = np.zeros(values.shape, bool)
                mask[one.rows, one.columns] = one.mask
                left, top, right, bottom = one.box(self.size, values.shape)
                annotations.append(
                    {
                        "id": first + len(annotations),
                        "image_id": image_id,
                        "category_id": category,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": one.area,
                        "segmentation": run_lengths.encode(mask),
                        "iscrowd": 1,  # COCO's sign for run lengths
                        "score": _number(one.peak),
                        "mass": _number(one.mass),
                    }
                )
        return {"image": image, "annotations": annotations}

    def _old_regions(self, name: str, threshold: float = MARKED) -> list[dict[str, Any]]:
        """For each region of a heatmap `box`, `share` of the image's area, `peak` and `mean`."""
        found = self.find_regions(name, RegionOptions(threshold))
        return [
            {"box": list(one.box), "share": _number(one.share), "peak": _number(one.peak), "mean": _number(one.mean)}
            for one in found
        ]

    def summary(self, name: str, threshold: float = MARKED) -> dict[str, Any]:
        """Mean, maximum, share of the area at `threshold` or above, number of regions and the 16 largest."""
        values = self._predicted_heatmap(name)
        regions = self._old_regions(name, threshold)
        return {
            "mean": _number(values.mean(dtype=np.float64)),
            "max": _number(values.max()),
            "threshold": threshold,
            "share_above": _number(np.mean(values >= threshold)),
            "region_count": len(regions),
            "regions": regions[:_MAX_REGIONS],
        }

    def to_json(self, threshold: float = MARKED) -> dict[str, Any]:
        """A plain dict that `json.dumps` takes; numbers rounded to 6 digits, None where undefined."""
        words = zip(self.words, self.word_labels, self.word_probabilities)
        judged = self.decided_by != "nothing"
        return {
            "image": self.name,
            "width": self.size[1],
            "height": self.size[0],
            "prompt": self.prompt,
            "scores": {name: _number(value) for name, value in self.scores.items()},
            "percentiles": self.percentiles and {n: _number(v) for n, v in self.percentiles.items()},
            "misaligned_words": self.misaligned_words if judged else None,
            "words_decided_by": self.decided_by,
            "words": [
                {"word": word, "misaligned": not label if judged else None, "probability": _number(probability)}
                for word, label, probability in words
            ],
            "regions": [one.to_json() for one in self.regions],
            "heatmaps": {n: self.summary(n, threshold) if self.has_heatmap(n) else None for n in HEATMAPS},
            "notes": list(self.notes),
            "model": self.model_id,
            "preprocessing": self.preprocessing_hash,
            "weight_license": self.weight_license,
        }

    def show(self, height: int = 384) -> Image.Image:
        """The image, its two overlays and the score bars as one picture; notebooks display it.

        Args:
          height: of each picture in pixels. Very wide or narrow ones get margins.
        """
        scores = np.array([self.scores[name] for name in SCORES], np.float32)
        return drawing.feedback_panel(*_with_margins(self.image, self.network_heatmaps), scores, height=height)

    def _repr_html_(self) -> str:
        """The panel and the marked prompt, for notebooks."""
        classes = ["" if label else "rahf-misaligned" for label in self.word_labels]
        titles = [f"misaligned: {value:.0%}" for value in np.nan_to_num(self.word_probabilities)]
        prompt = drawing.prompt_html(self.prompt, self.words, classes, titles)
        picture = base64.b64encode(png(self.show(height=256))).decode()
        style = "mark.rahf-misaligned{background:#fdd;color:#a00;text-decoration:underline wavy #a00}"
        notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in self.notes)
        return (
            f'<style>{style}</style><div style="max-width:60em"><p>{prompt}</p>'
            f'<img alt="{html.escape(self.name)}" style="max-width:100%" '
            f'src="data:image/png;base64,{picture}">'
            f"{notes}</div>"
        )

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in self.scores.items())
        misaligned = ", ".join(self.misaligned_words) or ("not judged" if self.decided_by == "nothing" else "none")
        return f"Feedback({self.name!r}: {scores}; misaligned: {misaligned})"


def make(
    text: EncodedPrompt, picture: Picture, prediction: Prediction, generated: Sequence[int] | None, model: Provenance
) -> Feedback:
    """The feedback on one image.

    Args:
      text: the prompt as the network reads it.
      picture: decoded with `keep`.
      prediction: of this image, NumPy arrays without a batch axis.
      generated: labels of the words in the generated target sequence, which then decide; None: probabilities decide.
      model: provenance of the critic.
    """
    percentiles = model.percentiles(prediction.scores)
    probabilities = np.full(len(text.words), np.nan, np.float32)
    judged = np.flatnonzero(text.word_end >= 0)
    probabilities[judged] = prediction.word_probabilities[judged]
    word_labels = np.where(probabilities > 0.5, 0, 1)
    decided_by = "nothing" if np.isnan(prediction.word_probabilities).all() else "probability"
    if generated is not None:
        decided_by = "generation"
        word_labels = np.asarray(generated, int)
    return Feedback(
        name=picture.name,
        prompt=text.prompt,
        scores=NamedScores({name: float(value) for name, value in zip(SCORES, prediction.scores)}),
        words=list(text.words),
        word_probabilities=probabilities,
        word_labels=word_labels,
        decided_by=decided_by,
        network_heatmaps=prediction.heatmaps,
        image=picture.shown,
        size=picture.size,
        model_id=model.model_id,
        notes=list(text.notes),
        preprocessing_hash=model.preprocessing_hash,
        weight_license=model.weight_license,
        percentiles=None if percentiles is None else NamedScores(zip(SCORES, map(float, percentiles))),
    )


def _with_margins(image: np.ndarray, heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey margins that bring width : height between 1 : 2 and 3 : 1: a panel needs room for its text."""
    rows, columns = image.shape[:2]
    height, width = max(rows, math.ceil(columns / 3)), max(columns, math.ceil(rows / 2))
    if (height, width) == (rows, columns):
        return image, heatmaps
    top, left = (height - rows) // 2, (width - columns) // 2
    padded = np.full((height, width, 3), 225, np.uint8)
    padded[top : top + rows, left : left + columns] = image
    maps = np.zeros((height, width, heatmaps.shape[2]), np.float32)
    maps[top : top + rows, left : left + columns] = resize(heatmaps, (rows, columns))
    return padded, maps


def png(picture: np.ndarray | Image.Image) -> bytes:
    """A Pillow image, or uint8 [h,w,3] or [h,w], as an encoded PNG."""
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def _number(value: Any) -> float | None:
    """For JSON, which has no NaN."""
    return round(float(value), 6) if math.isfinite(value) else None
