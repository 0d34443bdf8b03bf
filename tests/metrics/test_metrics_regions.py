"""Detection of regions, by hand: IoU, boxes, balanced accuracy, trivial predictions, people."""

import numpy as np
import pytest

from rahf.metrics import RegionMetrics, bootstrap_intervals

SIDE = 16
NOTHING = np.zeros((SIDE, SIDE))


def square(top, left, side=4, value=1.0):
    values = np.zeros((SIDE, SIDE))
    values[top : top + side, left : left + side] = value
    return values


def measured(pairs, annotators=None):
    """Metrics of (prediction, truth) maps of implausibility."""
    metrics = RegionMetrics()
    maps = [np.stack([np.stack([one, NOTHING], -1) for one in side]) for side in zip(*pairs)]
    mask = np.tile([True, False], (len(pairs), 1))
    metrics.update(*maps, mask, np.arange(len(pairs)), annotators)
    values = metrics.compute()
    return metrics, {name.removeprefix("regions/implausibility/"): value for name, value in values.items()}


def test_overlap_and_boxes():
    _, values = measured(
        [
            (square(0, 0), square(0, 0)),  # IoU 1
            (square(0, 2), square(0, 0)),  # IoU 8 / 24: no match
            (square(0, 1), square(0, 0)),  # IoU 12 / 20
            (NOTHING, square(8, 8)),  # missed: IoU 0
            (square(8, 8), NOTHING),  # a false alarm, which has no IoU
        ]
    )
    assert values["mask_iou"] == pytest.approx((1 + 1 / 3 + 0.6 + 0) / 4)
    assert values["box_f1"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 2))  # wrong: number 2 and 5; missed: 2 and 4
    assert values["image_accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert (values["count"], values["count_marked"]) == (4, 4)


def test_what_is_trivial():
    _, values = measured([(square(0, 0), square(6, 6)), (NOTHING, NOTHING)])
    assert values["mask_iou_all"] == pytest.approx(16 / 256)
    assert values["mask_iou_none"] == 0 and values["box_f1_none"] == 0
    # Calling everything bad, or nothing, is right in one class and wrong in the other.
    for level in ("image", "cell"):
        assert values[f"{level}_accuracy_all"] == values[f"{level}_accuracy_none"] == 0.5
    disc = np.add.outer((np.arange(16) - 7.5) ** 2, (np.arange(16) - 7.5) ** 2) <= 16
    assert values["mask_iou_centre"] == pytest.approx(16 / disc.sum())
    # Cells of 2 x 2 pixels: rows 6 to 9 are cells 3 and 4, so the square marks four, all of which the disc touches.
    cells = disc.reshape(8, 2, 8, 2).any((1, 3)).sum()
    assert values["cell_accuracy_centre"] == pytest.approx((1 + (128 - 4 - 2 * cells + 4) / (128 - 4)) / 2)


def test_only_what_half_of_the_annotators_marked_counts():
    uint8 = np.stack([square(0, 0, value=85) + square(8, 8, value=170), NOTHING], -1)[None].astype(np.uint8)
    metrics = RegionMetrics()
    predicted = np.stack([square(8, 8, value=0.5) + square(0, 8, value=0.49), NOTHING], -1)[None]
    metrics.update(predicted, uint8, np.array([[True, True]]), np.zeros(1, int))
    values = metrics.compute()
    assert values["regions/implausibility/mask_iou"] == values["regions/implausibility/box_f1"] == 1
    assert np.isnan(values["regions/misalignment/mask_iou"]) and np.isnan(values["regions/misalignment/box_f1"])
    assert np.isnan(values["regions/misalignment/image_accuracy"])  # no picture is marked: nothing to tell apart


def test_people_are_measured_against_the_others():
    same, other = square(0, 0) > 0, square(0, 2) > 0
    people = np.stack([same, same, other])
    _, values = measured([(NOTHING, square(0, 0)), (NOTHING, NOTHING)], [[people, None], [None, None]])
    # Of three, the first two agree with what at least one of the other two marked, a union of 24 pixels; the third is
    # compared with 16 pixels that the two marked.
    assert values["mask_iou_human"] == pytest.approx((16 / 24 + 16 / 24 + 8 / 24) / 3)
    assert values["count_human"] == 1
    _, alone = measured([(NOTHING, square(0, 0))])
    assert "mask_iou_human" not in alone and alone["count_human"] == 0


def test_predictions_of_another_size_batches_and_processes():
    rng = np.random.default_rng(0)
    truth = (rng.random((4, SIDE, SIDE, 2)) > 0.7).astype(np.float32)
    small = rng.random((4, 8, 8, 2)).astype(np.float32)
    mask, index = np.ones((4, 2), bool), np.array([0, 1, 2, -1])
    whole, one, two = RegionMetrics(), RegionMetrics(), RegionMetrics()
    whole.update(small, truth, mask, index)
    one.update(small[:2], truth[:2], mask[:2], index[:2])
    two.update(small[2:], truth[2:], mask[2:], index[2:])
    other = RegionMetrics.from_arrays(two.to_arrays(rows=3))
    np.testing.assert_equal(one.merge(other).compute(), whole.compute())
    assert len(whole) == 3
    low, high = bootstrap_intervals(whole, 50)["regions/misalignment/mask_iou"]
    assert low <= whole.compute()["regions/misalignment/mask_iou"] <= high
