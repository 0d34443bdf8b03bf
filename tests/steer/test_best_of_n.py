"""Selection: every rule on numbers small enough to follow by hand, and against a slow reference."""

import numpy as np
import pytest

from rahf.core.batch import Prediction
from rahf.steer.best_of_n import requirement, select


def scored(*plausibility, **others) -> np.ndarray:
    """Scores [N,4] with these plausibilities; the others are 0.5 or as given."""
    scores = np.full((len(plausibility), 4), 0.5, np.float32)
    scores[:, 0] = plausibility
    for name, column in others.items():
        scores[:, ("plausibility", "alignment", "aesthetics", "overall").index(name)] = column
    return scores


def test_best_of_each_group():
    selection = select(scored(0.2, 0.8, 0.5, 0.4, 0.6), groups=["a", "a", "b", "a", "b"])
    assert selection.indices.tolist() == [1, 4]
    assert selection.rank.tolist() == [3, 1, 2, 2, 1]
    np.testing.assert_allclose(selection.gap, [np.nan, 0.4, np.nan, np.nan, 0.1])
    assert selection.threshold is None
    assert selection.reasons == [
        "plausibility 0.2000; candidate 1 of its group has 0.8000",
        "plausibility 0.8000, best of 3 in its group, 0.4000 above candidate 3",
        "plausibility 0.5000; candidate 4 of its group has 0.6000",
        "plausibility 0.4000; candidate 1 of its group has 0.8000",
        "plausibility 0.6000, best of 2 in its group, 0.1000 above candidate 2",
    ]


def test_of_equal_ones_the_first_wins():
    selection = select(scored(0.3, 0.7, 0.7), groups=[0, 0, 0], name="line {}".format)
    assert selection.indices.tolist() == [1] and selection.rank.tolist() == [3, 1, 2] and selection.gap[1] == 0
    assert selection.reasons[2] == "plausibility 0.7000; line 1 of its group has 0.7000 as well and comes first"
    # What differs by less than the sixth decimal is equal: such noise must not decide.
    assert select(scored(0.7, 0.7000001), groups=[0, 0]).indices.tolist() == [0]


def test_threshold_includes_its_value():
    selection = select(scored(0.7, 0.69, 0.9), threshold=0.7, groups=[0, 1, 2])
    assert selection.indices.tolist() == [0, 2] and selection.threshold == 0.7
    assert selection.reasons[1] == "plausibility 0.6900, best of 1 in its group, below the threshold 0.7000"
    assert selection.reasons[2] == "plausibility 0.9000, best of 1 in its group, at least the threshold 0.7000"


def test_quantile_ranks_the_bests_of_groups():
    scores = scored(0.1, 0.2, 0.3, 0.4, 0.0, 0.0)
    groups = [0, 1, 2, 3, 3, 3]  # the two worst are no bests: they must not shift the quantile
    for quantile, kept in ((0, [0, 1, 2, 3]), (0.3, [1, 2, 3]), (0.5, [2, 3]), (0.75, [3]), (0.99, [3])):
        assert select(scores, quantile=quantile, groups=groups).indices.tolist() == kept, quantile
    selection = select(scores, quantile=0.5, groups=groups)
    assert selection.threshold == pytest.approx(0.3)
    assert selection.reasons[0].endswith("below the 0.5 quantile of 4 bests of groups, 0.3000")
    # Ranks do not care about a shift or a scale.
    shifted = select(scores * 0.1 + 0.85, quantile=0.5, groups=groups)
    assert shifted.indices.tolist() == [2, 3]


def test_minimum_gap():
    scores, groups = scored(0.8, 0.7, 0.8, 0.75, 0.3), [0, 0, 1, 1, 2]
    selection = select(scores, min_gap=0.1, groups=groups)
    assert selection.indices.tolist() == [0, 4]  # 0.8 - 0.7 is 0.1, also in binary; who is alone passes
    assert np.isnan(selection.gap[4])
    assert selection.reasons[2].endswith("0.0500 above candidate 3; less than the gap of 0.1")


def test_constraints_come_first():
    scores = scored(0.9, 0.6, 0.5, alignment=[0.2, 0.6, 0.9], aesthetics=[0.1, 0.5, 0.5])
    selection = select(scores, groups=[0, 0, 0], require=["alignment>=0.6", "aesthetics > 0.2"], min_gap=0.1)
    assert selection.indices.tolist() == [1] and selection.rank.tolist() == [0, 1, 2]
    assert selection.reasons[0] == "alignment 0.2000 is not >= 0.6; aesthetics 0.1000 is not > 0.2"
    np.testing.assert_allclose(selection.gap[1], 0.1)  # above the second of those that pass
    nothing = select(scores, groups=[0, 0, 0], require=["overall>0.5"], quantile=0.5)
    assert nothing.indices.tolist() == [] and nothing.threshold is None


def test_all_above_the_threshold():
    scores = scored(0.4, 0.6, 0.8)
    selection = select(scores, best_of=False, threshold=0.5)
    assert selection.indices.tolist() == [1, 2] and selection.rank.tolist() == [0, 0, 0]
    assert selection.reasons[0] == "plausibility 0.4000, below the threshold 0.5000"
    assert select(scores, best_of=False, quantile=0.5).indices.tolist() == [1, 2]
    assert select(scores, best_of=False).indices.tolist() == [0, 1, 2]


def test_other_key_and_a_prediction():
    scores = scored(0.9, 0.1, aesthetics=[0.3, 0.4])
    prediction = Prediction(np.zeros((2, 4, 4, 2)), scores, np.zeros((2, 3)))
    assert select(prediction, "aesthetics", groups=[5, 5]).indices.tolist() == [1]


def test_what_is_not_scored_is_never_kept():
    selection = select(scored(np.nan, 0.1), groups=[0, 0])
    assert selection.indices.tolist() == [1] and selection.reasons[0] == "not scored"
    assert select(scored(np.nan), best_of=False).indices.tolist() == []


@pytest.mark.parametrize(
    "options, error",
    [
        (dict(key="plausability"), "no score is called 'plausability'. Did you mean 'plausibility'?"),
        (dict(threshold=0.5, quantile=0.5), "give a threshold or a quantile, not both"),
        (dict(quantile=1), "quantile: expected at least 0 and below 1, found 1; 0.75 keeps the upper quarter"),
        (dict(threshold=float("nan")), "threshold: expected a number, found nan"),
        (dict(groups=None), "groups: needed to find the best of each; give one name per candidate, or best_of=False"),
        (dict(groups=[1]), "groups: expected one per candidate (2), found 1"),
        (
            dict(best_of=False, min_gap=0.1),
            "min_gap: expected 0 or more, and the best of each group to be chosen; found 0.1",
        ),
        (
            dict(require=["alignment=0.6"]),
            "constraint 'alignment=0.6': expected a score, >= <= > or <, and a number, as in 'alignment>=0.6'",
        ),
        (
            dict(require=["alignment>=high"]),
            "constraint 'alignment>=high': expected a score, >= <= > or <, and a number, as in 'alignment>=0.6'",
        ),
        (dict(require=["alinment>=0.6"]), "no score is called 'alinment'. Did you mean 'alignment'?"),
    ],
)
def test_bad_options(options, error):
    with pytest.raises(ValueError) as raised:
        select(scored(0.1, 0.2), **{"groups": [0, 0]} | options)
    assert str(raised.value) == error


def test_bad_scores():
    with pytest.raises(ValueError, match=r"scores: expected \[N,4\].*found \(3, 2\)"):
        select(np.zeros((3, 2)), best_of=False)


def test_reading_a_constraint():
    assert requirement(" overall <= 1e-1 ") == ("overall", "<=", 0.1)
    assert str(requirement("overall<0.25")) == "overall < 0.25"


def slow(scores, groups, least, min_gap, quantile):
    """The rules, one candidate against all others."""
    n = len(scores)
    ok = [scores[i, 1] >= least for i in range(n)]
    best = []
    for i in range(n):
        rivals = [j for j in range(n) if j != i and ok[j] and groups[j] == groups[i]]
        if ok[i] and all((scores[i, 0], -i) > (scores[j, 0], -j) for j in rivals):
            if all(round(scores[i, 0] - scores[j, 0], 9) >= min_gap for j in rivals):
                best.append(i)
    # At least the q-quantile: fewer than or exactly the share 1 - q is above, counted on the sorted values.
    values = sorted(scores[i, 0] for i in best)
    cut = values[int(np.ceil(quantile * (len(values) - 1)))] if values else 0
    return [i for i in best if scores[i, 0] >= cut]


@pytest.mark.parametrize("seed", range(5))
def test_equals_slow_reference(seed):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, 20, (200, 4)) / 20).astype(np.float64)  # many are equal
    groups = rng.integers(0, 40, 200).tolist()
    for min_gap, quantile in ((0.0, 0.0), (0.05, 0.0), (0.1, 0.4)):
        selection = select(scores, groups=groups, require=["alignment>=0.25"], min_gap=min_gap, quantile=quantile)
        assert selection.indices.tolist() == slow(scores, groups, 0.25, min_gap, quantile)
        assert len(selection.indices) > 5
        again = select(scores, groups=groups, require=["alignment>=0.25"], min_gap=min_gap, quantile=quantile)
        assert again.reasons == selection.reasons
