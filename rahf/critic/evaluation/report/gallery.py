"""The gallery of the HTML report: one article per example, pictures embedded once, heatmaps as layers."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image, features

from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic.drawing import prompt_html
from rahf.critic.evaluation.report.render import render
from rahf.images.overlay import as_unit, heatmap_rgba
from rahf.images.resize import resize


@dataclasses.dataclass(frozen=True)
class ReportExample:
    """The data of one example in the report. Labels that do not exist are None, or NaN among the scores."""

    uid: str
    image: np.ndarray  # uint8 [H,W,3] RGB, any size
    prompt: str
    words: Sequence[str]  # the prompt's words by the dataset's rule
    loss: float  # orders the examples from worst to best
    heatmaps: np.ndarray  # predicted, float [h,w,2] in [0,1], order HEATMAPS; NaN: not predicted
    scores: np.ndarray  # predicted, float [4] in [0,1], order SCORES; NaN: not predicted
    labels: Sequence[int] | None = None  # predicted, one per word, 1 aligned, 0 misaligned
    probability: Sequence[float] | None = None  # of "misaligned", one per word
    true_heatmaps: np.ndarray | None = None  # uint8 0..255 or float in [0,1], [h,w,2]
    true_heatmap_mask: Sequence[bool] = (True, True)  # which of the two maps exist
    true_scores: np.ndarray | None = None  # float [4], NaN where not rated
    true_labels: Sequence[int] | None = None  # one per word


#: Orders of the gallery that a reader may choose: name in `errors` → label. Larger is worse in all of them.
ORDERS = {
    "loss": "total loss",
    "scores": "scores",
    "implausibility": "implausibility heatmap",
    "misalignment": "misalignment heatmap",
    "words": "words",
}


def errors(example: ReportExample) -> dict[str, float]:
    """The errors of an example by each of `ORDERS`; NaN where there is no label.

    Scores: mean absolute error. Heatmaps: mean squared error at the truth's size. Words: the number of wrong labels.
    """
    wrong = {"loss": float(example.loss), "scores": math.nan, "words": math.nan}
    if example.true_scores is not None:
        difference = np.abs(np.asarray(example.scores, np.float64) - example.true_scores)
        rated = difference[np.isfinite(difference)]
        wrong["scores"] = float(rated.mean()) if rated.size else math.nan
    for kind, name in enumerate(HEATMAPS):
        wrong[name] = math.nan
        if _has_map(example, kind) and not np.isnan(example.heatmaps[:, :, kind]).all():
            truth = as_unit(example.true_heatmaps[:, :, kind])
            predicted = resize(as_unit(example.heatmaps[:, :, kind]), truth.shape)
            wrong[name] = float(np.square(predicted - truth).mean())
    if example.labels is not None and example.true_labels is not None:
        wrong["words"] = float(sum(a != b for a, b in zip(example.labels, example.true_labels)))
    return wrong


def _has_map(example: ReportExample, kind: int) -> bool:
    return example.true_heatmaps is not None and bool(example.true_heatmap_mask[kind])


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Sides in pixels and JPEG quality of embedded pictures."""

    image_side: int = 448
    map_side: int = 160
    quality: int = 82


class Article(NamedTuple):
    """One example of the gallery. The picture is a background image, so that five tiles share one copy."""

    html: Markup
    picture_rule: str  # the CSS rule of class `p<number>` that holds the picture


class _Tile(NamedTuple):
    """The picture, alone or under a heatmap."""

    caption: str
    layer: str = ""  # data URI of the heatmap; "": none
    note: str = ""
    style: str = ""  # further CSS class: "map" greys the picture, "plain" hides it


class _PromptLine(NamedTuple):
    """The prompt with misaligned words marked."""

    speaker: str  # "predicted" or "true"
    missing: str  # what to say if there are no labels
    marked: Markup | None = None  # None: there are no labels
    count: int = 0  # of marked words


class _ScoreRow(NamedTuple):
    name: str
    predicted: str
    true: str
    bar: float  # length in percent
    tick: float | None  # place of the true score in percent


def article(example: ReportExample, number: int, encoding: Encoding) -> Article:
    """Renders one example.

    Args:
      example: what to show.
      number: its place in the gallery, from 0.
      encoding: of its pictures.
    """
    height, width = example.image.shape[:2]
    html = render(
        "example.html",
        example=example,
        number=number,
        errors={name: value for name, value in errors(example).items() if math.isfinite(value)},
        ratio=f"{width}/{height}",
        tiles=list(_tiles(example, encoding)),
        prompts=_prompt_lines(example),
        scores=[_score_row(example, index) for index in range(len(SCORES))],
    )
    return Article(html, f".p{number}{{background-image:url({jpeg_uri(example.image, encoding)})}}")


def _tiles(example: ReportExample, encoding: Encoding) -> Iterator[_Tile]:
    yield _Tile("picture")
    for kind, name in enumerate(HEATMAPS):
        predicted = example.heatmaps[:, :, kind]
        if np.isnan(predicted).all():
            yield _Tile(f"{name}, predicted", note="not predicted", style="plain")
        else:
            yield _Tile(f"{name}, predicted", layer_uri(predicted, name, encoding), style="map")
        if not _has_map(example, kind):
            yield _Tile(f"{name}, true", note="no label", style="plain")
        elif (truth := example.true_heatmaps[:, :, kind]).any():
            yield _Tile(f"{name}, true", layer_uri(truth, name, encoding), style="map")
        else:
            yield _Tile(f"{name}, true", note="nothing marked", style="map")


def _prompt_lines(example: ReportExample) -> tuple[_PromptLine, _PromptLine]:
    """The prompt twice, marked as predicted and as true; a word's class says whether the two agree."""
    predicted, true = example.labels, example.true_labels
    upper, lower = _PromptLine("predicted", missing="not predicted"), _PromptLine("true", missing="no word labels")
    if predicted is not None:
        titles = _titles(example.probability, len(predicted))
        upper = _marked(upper, example, _word_classes(predicted, true, "false"), titles)
    if true is not None:
        lower = _marked(lower, example, _word_classes(true, predicted, "missed"), None)
    return upper, lower


def _word_classes(labels: Sequence[int], other: Sequence[int] | None, differs: str) -> list[str]:
    """A CSS class per word: "" for an aligned one, "hit" where both call it misaligned, else `differs`."""
    return [
        "" if label else ("hit" if other is None or i >= len(other) or other[i] == 0 else differs)
        for i, label in enumerate(labels)
    ]


def _marked(line: _PromptLine, example: ReportExample, classes: list[str], titles: list[str] | None) -> _PromptLine:
    html = prompt_html(example.prompt, example.words, classes, titles)  # escapes
    return line._replace(marked=Markup(html), count=sum(1 for name in classes if name))


def _titles(probability: Sequence[float] | None, count: int) -> list[str] | None:
    if probability is None:
        return None
    return [f"misaligned with probability {float(p):.2f}" for p in probability][:count]


def _score_row(example: ReportExample, index: int) -> _ScoreRow:
    score = float(example.scores[index])
    truth = math.nan if example.true_scores is None else float(example.true_scores[index])
    predicted, true = (f"{value:.2f}" if math.isfinite(value) else "–" for value in (score, truth))
    bar = _percent(score) if math.isfinite(score) else 0.0
    return _ScoreRow(SCORES[index], predicted, true, bar, _percent(truth) if math.isfinite(truth) else None)


def _percent(score: float) -> float:
    return 100 * min(max(score, 0.0), 1.0)


def jpeg_uri(image: np.ndarray, encoding: Encoding) -> str:
    """A picture, uint8 [H,W,3], as the data URI of a JPEG of the encoding's size."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((encoding.image_side, encoding.image_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=encoding.quality, optimize=True)
    return _data_uri("image/jpeg", out.getvalue())


def layer_uri(heatmap: np.ndarray, name: str, encoding: Encoding) -> str:
    """A heatmap, uint8 or float [h,w], in the colours of HEATMAPS' `name` as the data URI of a transparent layer."""
    value = as_unit(heatmap)
    scale = min(1.0, encoding.map_side / max(value.shape))
    value = resize(value, tuple(max(1, round(side * scale)) for side in value.shape))
    layer, out = Image.fromarray(heatmap_rgba(value, name, strength=1.0)), io.BytesIO()
    if features.check("webp"):
        layer.save(out, "WEBP", quality=70, alpha_quality=90, method=4)
        return _data_uri("image/webp", out.getvalue())
    layer.save(out, "PNG", optimize=True)
    return _data_uri("image/png", out.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
