"""Agreement: published values, slow references written from the definitions, and the cases without a value."""

import itertools
import math

import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.metrics import agreement

N = math.nan
#: The example of Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section D: 4 observers, 12 units.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
).T
#: 14 people sort 10 subjects into 5 kinds (Fleiss 1971, as in many textbooks): kappa 0.210.
FLEISS = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
          [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip


def slow_alpha(ratings, level, rater=None):
    """From the definition: pairs of different people, each unit weighted by 1 / (m - 1); chance without replacement."""
    pairs = []
    for unit in ratings:
        people = [r for r, value in enumerate(unit) if not math.isnan(value)]
        for a, b in itertools.permutations(people, 2):
            if rater is None or rater in (a, b):
                pairs.append((unit[a], unit[b], 1 / (len(people) - 1)))
    totals = {}
    for value, _, weight in pairs:
        totals[value] = totals.get(value, 0) + weight
    count = sum(totals.values())

    def squared(a, b):
        if level == "nominal":
            return float(a != b)
        if level == "interval":
            return (a - b) ** 2
        low, high = min(a, b), max(a, b)
        return (sum(n for v, n in totals.items() if low <= v <= high) - (totals[a] + totals[b]) / 2) ** 2

    observed = sum(weight * squared(a, b) for a, b, weight in pairs) / count
    chance = sum(totals[a] * totals[b] * squared(a, b) for a in totals for b in totals) / (count * (count - 1))
    return 1 - observed / chance


@pytest.mark.parametrize("level, value", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_has_the_published_value(level, value):
    assert agreement.krippendorff_alpha(PUBLISHED, level) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("level", agreement.LEVELS)
@pytest.mark.parametrize("rater", [None, 2])
def test_alpha_is_the_slow_reference(level, rater):
    random = np.random.default_rng(5)
    ratings = random.integers(1, 6, (30, 4)).astype(float)
    ratings[random.random(ratings.shape) < 0.4] = N
    fast = agreement.krippendorff_alpha(ratings, level, rater)
    assert fast == pytest.approx(slow_alpha(ratings, level, rater), abs=1e-12)


def test_alpha_without_a_value():
    assert math.isnan(agreement.krippendorff_alpha(np.full((3, 2), N)))
    assert math.isnan(agreement.krippendorff_alpha(np.array([[1, N], [N, 2.0]])))  # never two answers to one unit
    assert math.isnan(agreement.krippendorff_alpha(np.full((3, 2), 4.0)))  # chance would agree, too
    assert agreement.krippendorff_alpha(np.array([[1, 1], [5.0, 5]])) == 1
    assert agreement.krippendorff_alpha(np.array([[1, 5], [5.0, 1]]), "nominal") < 0
    for wrong in ({"level": "ratio"}, {"rater": 2}):
        with pytest.raises(ArgumentError, match="expected"):
            agreement.krippendorff_alpha(np.ones((2, 2)), **wrong)
    with pytest.raises(ArgumentError, match="finite"):
        agreement.krippendorff_alpha(np.array([[1, math.inf]]))


def test_fleiss_kappa_has_the_published_value():
    labels = np.array([np.repeat(np.arange(5.0), counts) for counts in FLEISS])
    assert agreement.fleiss_kappa(labels) == pytest.approx(0.2099, abs=5e-5)


def test_fleiss_kappa_of_units_of_different_size():
    """By hand: agreeing pairs 1, 1/3, 0 of the units with two or more; shares of label 1: 1, 2/3, 1/2."""
    labels = np.array([[1, 1, N], [1, 0, 1], [0, N, 1], [N, N, 0]])
    share = (1 + 2 / 3 + 1 / 2) / 3
    chance = share**2 + (1 - share) ** 2
    assert agreement.fleiss_kappa(labels) == pytest.approx((4 / 9 - chance) / (1 - chance))
    assert math.isnan(agreement.fleiss_kappa(np.ones((2, 3))))
    assert math.isnan(agreement.fleiss_kappa(np.array([[1, N]])))


def test_cohen_kappa_of_a_person_with_the_others():
    """Two people: the textbook case of 50 grants (20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no): kappa 0.4."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    labels = np.array(pairs, float)
    assert agreement.cohen_kappa_with_others(labels, 0) == pytest.approx(0.4)
    third = np.column_stack([labels, np.full(50, N)])
    assert agreement.cohen_kappa_with_others(third, 0) == pytest.approx(0.4)
    assert math.isnan(agreement.cohen_kappa_with_others(third, 2))


def test_overlap_of_two_maps():
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert agreement.pair_overlap(first, second).both_empty
    first[0, :3] = second[0, 1:] = True
    overlap = agreement.pair_overlap(first, second)
    assert overlap == (2 / 4, 4 / 6, False)
    assert agreement.pair_overlap(first, np.zeros((4, 4), bool)) == (0, 0, False)
    third = np.random.default_rng(0).random((4, 4)) < 0.5
    pairs = [agreement.pair_overlap(a, b) for a, b in ((first, second), (first, third), (second, third))]
    assert agreement.pair_overlaps(np.stack([first, second, third])) == pairs
    with pytest.raises(ArgumentError, match="shapes"):
        agreement.pair_overlap(first, np.zeros((2, 2), bool))


def test_histogram_of_largest_differences():
    ratings = np.array([[3, 3, 3], [1, 5, N], [2, 3, 2], [4, N, N], [3, 5, 4]])
    differences = agreement.max_differences(ratings)
    assert differences.counts.tolist() == [1, 1, 1, 0, 1] and differences.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (differences.equal, differences.within_one_step) == (0.25, 0.5)
    assert math.isnan(agreement.max_differences(np.zeros((0, 3))).equal)
    with pytest.raises(ArgumentError, match="1 to 5"):
        agreement.max_differences(np.array([[0, 3]]))
