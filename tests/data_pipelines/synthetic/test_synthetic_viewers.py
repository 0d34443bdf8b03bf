"""Simulated viewers look where the documented model says."""

import numpy as np
import pytest

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.synthetic import prepare, viewers
from data_pipelines.synthetic.scene import scene
from rahf.core.errors import ArgumentError


def test_weights_follow_the_model():
    """Of the scenes of a seed, those with several kinds of objects: the rarer kind weighs more than its size says."""
    several = 0
    for index in range(12):
        one = scene(3, "train", index, 64)
        spots, weights = viewers.objects(one)
        assert weights.sum() == pytest.approx(1) and len(spots) == len(weights)
        kinds = [(g.shape, g.colour) for g, at in zip(one.plan.shown.groups, one.spots) for _ in at[: g.count]]
        by_hand = np.array(
            [
                spot[2] * viewers._contrast(one.image, tuple(spot)) * (1 + np.log2(len(kinds) / kinds.count(kind)))
                for spot, kind in zip(spots, kinds)
            ]
        )
        np.testing.assert_allclose(weights, by_hand / by_hand.sum())
        several += len(set(kinds)) > 1
    assert several


def test_fixations_are_drawn_from_the_objects_and_the_centre():
    one = scene(3, "train", 0, 64)
    points = viewers.fixations(one, 3, "train", 0, 300)
    np.testing.assert_array_equal(points, viewers.fixations(one, 3, "train", 0, 300))
    assert points[:, :2].min() >= 0 and points[:, :2].max() <= 64 and set(points[:, 2]) == set(range(300))
    spots, weights = viewers.objects(one)
    first = np.r_[True, np.diff(points[:, 2]) > 0]
    away = np.hypot(*(points[~first, :2] / 64 - spots[:, None, :2]).transpose(2, 0, 1)) / spots[:, 2:3]
    near = (away < 0.6).mean(1)
    # 0.6 diameters are three standard deviations; the centre adds what falls there by chance.
    assert (near >= 0.85 * weights * 0.9).all()
    assert points[first, :2].mean() / 64 == pytest.approx(0.5, abs=0.03)


def test_the_dataset_has_fixations_only_where_asked(tmp_path):
    for viewers_per_scene in (0, 2):
        prepare.prepare(tmp_path / str(viewers_per_scene), 2, 0, 0, 1, 48, progress=False, viewers=viewers_per_scene)
    plain, looked_at = (store.open_split(tmp_path / name, "train") for name in ("0", "2"))
    assert plain[0].fixations is None and not store.has_field(tmp_path / "0", "saliency")
    for one, other in zip(plain, looked_at):
        assert one.image == other.image and one.prompt == other.prompt
        assert len(other.fixations) >= 4 and density.decode(other.saliency).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ArgumentError, match="viewers=-1"):
        prepare.prepare(tmp_path / "x", 2, 0, 0, viewers=-1)
