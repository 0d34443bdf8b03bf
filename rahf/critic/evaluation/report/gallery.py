"""The gallery of the HTML report: one article per example, pictures embedded once, heatmaps as layers."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, features

from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic.drawing import prompt_html
from rahf.images.overlay import as_unit, heatmap_rgba
from rahf.images.resize import resize


@dataclasses.dataclass(frozen=True)
class ReportExample:
    """What the report shows of one example. Labels that do not exist are None, or NaN among the scores."""

    uid: str
    image: np.ndarray  # uint8 [H,W,3] RGB, any size
    prompt: str
    words: Sequence[str]  # the prompt's words by the dataset's rule
    loss: float  # decides what is a worst and a best case
    heatmaps: np.ndarray  # predicted, float [h,w,2] in [0,1], order HEATMAPS; NaN: not predicted
    scores: np.ndarray  # predicted, float [4] in [0,1], order SCORES; NaN: not predicted
    labels: Sequence[int] | None = None  # predicted, one per word, 1 aligned, 0 misaligned
    probability: Sequence[float] | None = None  # of "misaligned", one per word
    true_heatmaps: np.ndarray | None = None  # uint8 0..255 or float in [0,1], [h,w,2]
    true_heatmap_mask: Sequence[bool] = (True, True)  # which of the two maps exist
    true_scores: np.ndarray | None = None  # float [4], NaN where not rated
    true_labels: Sequence[int] | None = None  # one per word


#: Orders that the page offers: attribute → label. All: larger is worse.
ORDERS = {
    "loss": "total loss",
    "scores": "scores",
    "implausibility": "implausibility heatmap",
    "misalignment": "misalignment heatmap",
    "words": "words",
}


def errors(example: ReportExample) -> dict[str, float]:
    """How wrong an example is by each of `ORDERS`; NaN where there is no label.

    Scores: mean absolute error. Heatmaps: mean squared error at the truth's size. Words: how many are wrong.
    """
    found = {"loss": float(example.loss), "scores": math.nan, "words": math.nan}
    if example.true_scores is not None:
        difference = np.abs(np.asarray(example.scores, np.float64) - example.true_scores)
        known = difference[np.isfinite(difference)]
        found["scores"] = float(known.mean()) if known.size else math.nan
    for kind, name in enumerate(HEATMAPS):
        found[name] = math.nan
        if _has_map(example, kind) and not np.isnan(example.heatmaps[:, :, kind]).all():
            truth = as_unit(example.true_heatmaps[:, :, kind])
            predicted = resize(as_unit(example.heatmaps[:, :, kind]), truth.shape)
            found[name] = float(np.square(predicted - truth).mean())
    if example.labels is not None and example.true_labels is not None:
        found["words"] = float(sum(a != b for a, b in zip(example.labels, example.true_labels)))
    return found


def _has_map(example: ReportExample, kind: int) -> bool:
    return example.true_heatmaps is not None and bool(example.true_heatmap_mask[kind])


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Sides in pixels and JPEG quality of embedded pictures."""

    image_side: int = 448
    map_side: int = 160
    quality: int = 82


def article(example: ReportExample, number: int, encoding: Encoding) -> tuple[str, str]:
    """HTML of one example and the CSS rule that holds its picture.

    The picture is a background image of class ``p<number>``, so five tiles share one copy.
    """
    rule = f".p{number}{{background-image:url({_jpeg(example.image, encoding)})}}"
    wrong = errors(example)
    data = "".join(f' data-{key}="{value:.6g}"' for key, value in wrong.items() if math.isfinite(value))
    tiles = [_tile(number, example, "picture", None)]
    for kind, name in enumerate(HEATMAPS):
        predicted = example.heatmaps[:, :, kind]
        if np.isnan(predicted).all():
            tiles.append(_tile(number, example, f"{name}, predicted", None, "not predicted"))
        else:
            tiles.append(_tile(number, example, f"{name}, predicted", _layer(predicted, name, encoding)))
        if _has_map(example, kind):
            truth = example.true_heatmaps[:, :, kind]
            layer = _layer(truth, name, encoding) if truth.any() else None
            note = "" if truth.any() else "nothing marked"
            tiles.append(_tile(number, example, f"{name}, true", layer, note))
        else:
            tiles.append(_tile(number, example, f"{name}, true", None, "no label"))
    loss = f"{wrong['loss']:.4g}" if math.isfinite(wrong["loss"]) else "–"
    words = "" if math.isnan(wrong["words"]) else f" · wrong words {wrong['words']:.0f}"
    return (
        f'<article class="example" data-order="{number}"{data}>'
        f'<header><span class="rank">#{number + 1}</span><code>{html.escape(example.uid)}</code>'
        f'<span class="small">loss {loss}{words}</span></header><div class="strip">{"".join(tiles)}</div>'
        f'<div class="below"><div class="prompts">{_prompts(example)}</div>{_scores(example)}</div>'
        "</article>",
        rule,
    )


def _tile(number: int, example: ReportExample, caption: str, layer: str | None, note: str = "") -> str:
    height, width = example.image.shape[:2]
    inner = f'<img src="{layer}" alt="">' if layer else ""
    inner += f'<span class="note">{note}</span>' if note else ""
    shade = " plain" if note in ("no label", "not predicted") else "" if caption == "picture" else " map"
    return (
        f'<figure><div class="pic p{number}{shade}" role="img" tabindex="0" aria-label="{caption}" '
        f'style="aspect-ratio:{width}/{height}">{inner}</div><figcaption>{caption}</figcaption></figure>'
    )


def _prompts(example: ReportExample) -> str:
    """The prompt twice, marked as predicted and as true; a word's class says whether the two agree."""
    predicted, true = example.labels, example.true_labels
    lines = []
    for heading, labels, other, differs in (
        ("predicted", predicted, true, "false"),
        ("true", true, predicted, "missed"),
    ):
        if labels is None:
            missing = "not predicted" if heading == "predicted" else "no word labels"
            nothing = f'<span class="small">{missing}</span>'
            lines.append(f'<p class="prompt"><span class="who">{heading}</span>{nothing}</p>')
            continue
        classes = [
            "" if label else ("hit" if other is None or i >= len(other) or other[i] == 0 else differs)
            for i, label in enumerate(labels)
        ]
        titles = _titles(example.probability, len(classes)) if heading == "predicted" else None
        marked = prompt_html(example.prompt, example.words, classes, titles)
        count = sum(1 for c in classes if c)
        lines.append(
            f'<p class="prompt"><span class="who">{heading} <b>{count}</b></span><bdi dir="auto">{marked}</bdi></p>'
        )
    return "".join(lines)


def _titles(probability: Sequence[float] | None, count: int) -> list[str] | None:
    if probability is None:
        return None
    return [f"misaligned with probability {float(p):.2f}" for p in probability][:count]


def _scores(example: ReportExample) -> str:
    rows = []
    for i, name in enumerate(SCORES):
        score = float(example.scores[i])
        truth = math.nan if example.true_scores is None else float(example.true_scores[i])
        width = 100 * min(max(score, 0.0), 1.0) if math.isfinite(score) else 0
        tick = f'<i style="left:{100 * min(max(truth, 0.0), 1.0):.1f}%"></i>' if math.isfinite(truth) else ""
        given, rated = (f"{value:.2f}" if math.isfinite(value) else "–" for value in (score, truth))
        rows.append(
            f'<tr><th scope="row">{name}</th><td class="track"><div class="bar">'
            f'<b style="width:{width:.1f}%"></b>{tick}</div></td><td>{given}</td>'
            f'<td class="rated">{rated}</td></tr>'
        )
    return (
        '<table class="scores"><thead><tr><th></th><th></th><th>predicted</th><th>true</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _jpeg(image: np.ndarray, encoding: Encoding) -> str:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((encoding.image_side, encoding.image_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=encoding.quality, optimize=True)
    return _data_uri("image/jpeg", out.getvalue())


def _layer(heatmap: np.ndarray, name: str, encoding: Encoding) -> str:
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
