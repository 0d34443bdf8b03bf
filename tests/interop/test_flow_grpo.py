"""The critic as reward of flow_grpo, called as its training scripts call `multi_score` and what it returns."""

import numpy as np
import pytest

from rahf.core.errors import ArgumentError, ImageError, NotPredicted, UnknownNameError
from rahf.critic.families import Outputs
from rahf.interop.flow_grpo import multi_score, score_function
from tests.helpers.image_maker import smooth

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")

PROMPTS = ("a red cat on a blue mat", "two dogs")


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """uint8 [2,32,40,3]."""
    return np.stack([smooth(32, 40, seed) for seed in (1, 2)])


def test_tensors_and_arrays_give_the_scores_of_saved_pictures(tiny_critic, pictures):
    expected = tiny_critic.score(list(pictures), list(PROMPTS), "alignment")
    reward = score_function(tiny_critic, "alignment")
    tensor = torch.from_numpy(pictures).movedim(-1, 1) / 255
    for images in (pictures, tensor, tensor + 1e-4, tensor.requires_grad_()):
        scores, extra = reward(images, PROMPTS, ({}, {}))
        assert extra == {} and all(type(score) is float for score in scores)
        np.testing.assert_array_equal(np.float32(scores), expected)
    with pytest.raises(ImageError, match="channels last"):
        reward(tensor.detach().movedim(1, -1), PROMPTS, None)
    with pytest.raises(ImageError, match="channels first"):
        reward(np.moveaxis(pictures, -1, 1), PROMPTS, None)


def others(device, score_dict):
    """A reward of the trainer's own, with the arguments and results of its `multi_score`."""
    assert device == "cpu" and score_dict == {"width": 0.5}

    def reward(images, prompts, metadata, ref_images=None, only_strict=True):
        scores = np.full(len(images), images.shape[-1] + (0 if only_strict else 1000))
        return {"width": scores, "avg": [0.5 * score for score in scores]}, {}

    return reward


def test_rewards_add_up_with_those_of_the_trainer(tiny_critic, pictures):
    images = torch.from_numpy(pictures).movedim(-1, 1) / 255
    alignment, overall = (tiny_critic.score(list(pictures), list(PROMPTS), score) for score in ("alignment", "overall"))
    factory = multi_score(tiny_critic, others)
    reward = factory("cpu", {"rahf_overall": 2.0, "width": 0.5, "rahf_alignment": -1.0})
    for only_strict, width in ((True, 40), (False, 1040)):
        details, extra = reward(images, PROMPTS, ({}, {}), only_strict=only_strict)
        assert extra == {} and set(details) == {"rahf_overall", "rahf_alignment", "width", "avg"}
        np.testing.assert_allclose(details["avg"], 2 * overall - alignment + 0.5 * width, rtol=1e-6)
        assert torch.as_tensor(details["avg"]).shape == (2,)  # what the scripts make of each entry
        np.testing.assert_allclose(details["rahf_alignment"], alignment)


def test_wrong_names_are_told(tiny_critic, monkeypatch):
    with pytest.raises(ArgumentError, match="weights of rahf_plausibility.*found pickscore.*give .* as others"):
        multi_score(tiny_critic)("cpu", {"rahf_overall": 1.0, "pickscore": 0.5})
    with pytest.raises(ArgumentError, match="found none"):
        multi_score(tiny_critic, others)("cpu", {})
    with pytest.raises(UnknownNameError, match="Did you mean 'overall'"):
        multi_score(tiny_critic)("cpu", {"rahf_overal": 1.0})
    monkeypatch.setattr(tiny_critic, "outputs", Outputs(scores=("alignment",)))
    with pytest.raises(NotPredicted, match="does not predict 'overall'"):
        score_function(tiny_critic)
