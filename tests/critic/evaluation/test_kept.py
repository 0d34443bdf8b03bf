"""Which examples an evaluation keeps for its report, and outputs that are the same for all of them."""

import numpy as np

from rahf.core.batch import Prediction
from rahf.critic.evaluation import constant
from rahf.critic.evaluation.kept import KeptExamples
from rahf.critic.evaluation.report.page import ReportExample
from rahf.critic.families import Outputs


def example(number, side=8):
    maps = np.zeros((4, 4, 2), np.float16)
    return ReportExample(
        str(number), np.zeros((side, side * 2, 3), np.uint8), "a", ["a"], float(number), maps, np.zeros(4)
    )


def test_a_bounded_number_is_kept_whatever_the_split():
    """The worst and the best of all, and a sample of the others; the rest is never made."""
    losses = np.random.default_rng(0).permutation(5000).astype(float)
    losses[17] = np.nan  # among the worst
    made, kept = [], KeptExamples(60)
    for loss in losses:
        kept.offer(loss, lambda loss=loss: made.append(loss) or example(loss))
    assert kept.count == 5000 and len(made) < 1000
    found = {one.uid: one for one in kept.examples}
    assert len(found) == len(kept.examples) <= 100
    ordered = sorted(losses[np.isfinite(losses)])
    assert {str(loss) for loss in ordered[:20]} <= found.keys()
    assert {str(loss) for loss in ordered[-19:]} | {"nan"} <= found.keys()
    others = np.array([one.loss for one in kept.examples if 20 <= one.loss < 4980])
    assert len(others) >= 55 and 2000 < others.mean() < 3000  # 60 drawn evenly; their mean is 2500 ± 190


def test_a_small_split_is_kept_whole_and_in_order():
    kept = KeptExamples(9)
    for number in range(9):
        kept.offer(float(-number), lambda number=number: example(number))
    assert [one.uid for one in kept.examples] == [str(number) for number in range(9)]
    nothing = KeptExamples(0)
    nothing.offer(1.0, lambda: example(1))
    assert nothing.examples == []


def test_pictures_are_kept_at_the_size_of_the_report():
    kept = KeptExamples(3)
    kept.offer(1.0, lambda: example(1, side=1500))
    assert kept.examples[0].image.shape == (224, 448, 3)


def test_constant_outputs_are_named():
    stream = np.random.default_rng(0)
    scores = stream.random((4, 4)).astype(np.float32)
    scores[:, 1] = 0.25
    maps = stream.random((4, 2, 2, 2)).astype(np.float32)
    maps[..., 1] = np.nan  # not predicted
    maps[..., 0] = maps[:1, ..., 0]
    constants = constant.Constants(Outputs(heatmaps=("implausibility",)))
    for rows in ([0, 1], [3], []):
        constants.update(Prediction(maps, scores, None), np.array(rows, int))
    assert constants.found() == ("alignment score (0.2500)", "implausibility heatmap")
    assert "dead: alignment score (0.2500), implausibility heatmap: the same for all 3" in constant.note(
        constants.found(), "all 3 examples"
    )
    one = constant.Constants(Outputs())
    one.update(Prediction(None, scores, None), np.array([0]))
    assert one.found() == () and constant.note((), "none") is None
