"""Detection of marked regions: mask IoU, F1 of boxes, balanced accuracy of images and of cells; with what is trivial.

A map is cut at one half into marked and unmarked pixels: at least half of the annotators marked, or are expected to.
Each measure is given for the model and for three predictions that look at nothing (everything is marked, nothing is, a
disc in the centre), and, where the maps of several annotators were kept, for people: each one against the majority of
the others, with the same code. "F1 of an artifact being present" is left out: to call every picture bad gives .96 on
RichHF-18K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.ndimage

from rahf.core.batch import HEATMAPS
from rahf.images.regions import TOUCHING
from rahf.metrics.accumulator import divide, weighted_mean
from rahf.metrics.marked_maps import MarkedMapMetrics, marked

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float

#: Who predicts: the model, what is trivial, people. The model's metrics have no ending.
PREDICTORS = ("", "_all", "_none", "_centre", "_human")
#: Measures of one predictor, in the order in which reports show them.
MEASURES = ("mask_iou", "box_f1", "image_accuracy", "cell_accuracy")
BOX_IOU = 0.5  # from which two boxes are the same region
CELLS = 8  # along each side; a cell is marked if one of its pixels is
CENTRE = 0.25  # radius of the disc in the centre, in heights of the picture
_PAIRS = ("11", "10", "01", "00")  # truth, prediction
# Of one comparison: sum and number of IoUs; boxes right, wrong and missed; images and cells by pairs.
_COLUMNS = ("iou", "ious", "tp", "fp", "fn", *(f"{of}_{pair}" for of in ("image", "cell") for pair in _PAIRS))


class RegionMetrics(MarkedMapMetrics):
    """`regions/<map>/{mask_iou,box_f1,image_accuracy,cell_accuracy}`, the same with the endings of PREDICTORS, counts.

    `mask_iou` is the mean over maps in which something is marked. `box_f1` counts boxes of connected regions over all
    maps; two boxes are matched, largest IoU first, from an IoU of 0.5 on. `image_accuracy` is the balanced accuracy of
    "something is marked in this picture", `cell_accuracy` that of the cells of an 8 x 8 grid, over all maps. NaN where
    one of the two classes does not occur. People have `_human` only where their own maps were kept.
    """

    shapes: ClassVar = {"values": (len(PREDICTORS), len(_COLUMNS))}

    def compared(
        self,
        actual: Bool[np.ndarray, "H W"],
        predicted: Float[np.ndarray, "H W"],
        people: Bool[np.ndarray, "n H W"] | None,
    ) -> dict[str, Float[np.ndarray, "..."]]:
        return {"values": _compared(actual, marked(predicted), people)}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        arrays = self.to_arrays()
        result: dict[str, np.ndarray] = {}
        for kind, name in enumerate(HEATMAPS):
            for place, ending in enumerate(PREDICTORS):
                columns = dict(zip(_COLUMNS, np.moveaxis(arrays["values"][:, kind, place], -1, 0)))
                if ending == "_human" and not sum(column.sum() for column in columns.values()):
                    continue  # nobody's own maps were kept
                sums = {column: weights @ counts for column, counts in columns.items()}
                of = f"regions/{name}/"
                ious = divide(columns["iou"], columns["ious"])
                result[f"{of}mask_iou{ending}"] = weighted_mean(ious, columns["ious"] > 0, weights)
                wrong = sums["fp"] + sums["fn"]
                result[f"{of}box_f1{ending}"] = np.where(
                    sums["tp"] + sums["fn"] > 0, divide(2 * sums["tp"], 2 * sums["tp"] + wrong), np.nan
                )
                for level in ("image", "cell"):
                    result[f"{of}{level}_accuracy{ending}"] = _balanced(*(sums[f"{level}_{pair}"] for pair in _PAIRS))
        return result

    def counts(self) -> dict[str, float]:
        arrays = self.to_arrays()
        values = arrays["values"]
        result: dict[str, float] = {}
        for kind, name in enumerate(HEATMAPS):
            model = dict(zip(_COLUMNS, values[:, kind, 0].sum(0)))
            result[f"regions/{name}/count"] = float(model["tp"] + model["fn"])
            result[f"regions/{name}/count_marked"] = float(model["ious"])
            human = values[:, kind, PREDICTORS.index("_human")].any(1)
            result[f"regions/{name}/count_human"] = float(human.sum())
        return result


def _balanced(hits: np.ndarray, missed: np.ndarray, alarms: np.ndarray, rejections: np.ndarray) -> np.ndarray:
    """Mean of the shares of marked and of unmarked ones that are right."""
    return (divide(hits, hits + missed) + divide(rejections, alarms + rejections)) / 2


def _compared(actual: np.ndarray, predicted: np.ndarray, annotators: np.ndarray | None) -> np.ndarray:
    """float64 [P,C]: the columns of every predictor for one map."""
    rows = np.zeros((len(PREDICTORS), len(_COLUMNS)))
    truth = _Parts(actual)
    guesses = (predicted, np.ones_like(actual), np.zeros_like(actual), _disc(actual.shape))
    for place, guess in enumerate(guesses):
        rows[place] = _columns(truth, _Parts(guess))
    if annotators is not None:
        votes = annotators.sum(0)
        for one in annotators:
            others = 2 * (votes - one) >= len(annotators) - 1
            rows[-1] += _columns(_Parts(others), _Parts(one))
    return rows


class _Parts:
    """What is compared of a mask."""

    def __init__(self, mask: np.ndarray):
        self.mask = mask
        self.any = bool(mask.any())
        numbered, _ = scipy.ndimage.label(mask, structure=TOUCHING) if self.any else (mask, 0)
        slices = scipy.ndimage.find_objects(numbered) if self.any else []
        self.boxes = np.array([(r.start, c.start, r.stop, c.stop) for r, c in slices], float).reshape(-1, 4)
        edges = [np.linspace(0, side, min(CELLS, side) + 1).astype(int)[:-1] for side in mask.shape]
        self.cells = np.logical_or.reduceat(np.logical_or.reduceat(mask, edges[0], 0), edges[1], 1)


def _columns(truth: _Parts, guess: _Parts) -> np.ndarray:
    inside = np.count_nonzero(truth.mask & guess.mask)
    union = np.count_nonzero(truth.mask | guess.mask)
    right = _matches(truth.boxes, guess.boxes)
    image = _pairs(np.array([truth.any]), np.array([guess.any]))
    return np.array(
        [inside / union if truth.any else 0.0, truth.any, right, len(guess.boxes) - right, len(truth.boxes) - right,
         *image, *_pairs(truth.cells, guess.cells)], float
    )  # fmt: skip


def _pairs(truth: np.ndarray, guess: np.ndarray) -> list[int]:
    """Numbers of (truth, guess): both, only truth, only guess, neither."""
    both, only, alarm = (np.count_nonzero(one) for one in (truth & guess, truth & ~guess, ~truth & guess))
    return [both, only, alarm, truth.size - both - only - alarm]


def _matches(truth: Float[np.ndarray, "n 4"], guess: Float[np.ndarray, "m 4"]) -> int:
    """Number of pairs of boxes with an IoU of at least BOX_IOU, each box in one pair, largest IoU first."""
    if not len(truth) or not len(guess):
        return 0
    low = np.maximum(truth[:, None, :2], guess[None, :, :2])
    high = np.minimum(truth[:, None, 2:], guess[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (truth, guess)]
    iou = common / (areas[0][:, None] + areas[1][None] - common)
    matched = 0
    while iou.size and iou.max() >= BOX_IOU:
        row, column = np.unravel_index(np.argmax(iou), iou.shape)
        iou[row], iou[:, column] = -1, -1
        matched += 1
    return matched


def _disc(shape: tuple[int, int]) -> np.ndarray:
    """A disc of radius CENTRE heights in the middle."""
    down, across = ((np.arange(side) + 0.5 - side / 2) / shape[0] for side in shape)
    return np.add.outer(down**2, across**2) <= CENTRE**2
