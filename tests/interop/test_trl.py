"""The critic as reward of a model that writes prompts, called as TRL's trainers call reward functions."""

import numpy as np
import pytest

from rahf.core.errors import ArgumentError, NotPredicted
from rahf.critic.families import Outputs
from rahf.interop.trl import prompt_reward
from tests.helpers.image_maker import smooth

WISHES = ["a red cat on a blue mat", "two dogs"]


def paint(prompts):
    """A picture that depends on the prompt."""
    return [smooth(32, 32, len(prompt)) for prompt in prompts]


def test_one_float_per_completion(tiny_critic):
    reward = prompt_reward(tiny_critic, paint, "alignment")
    completions = ["a photo of a red cat", "dogs, two of them, 4k"]
    expected = tiny_critic.score(paint(completions), WISHES, "alignment")
    # All arguments by keyword, the dataset's other columns among them.
    of_trainer = {"trainer_state": object(), "log_extra": print, "log_metric": print}  # as of TRL 1.9
    columns = {"completion_ids": [[1], [2]], "style": ["x", "y"], **of_trainer}
    rewards = reward(prompts=WISHES, completions=completions, **columns)
    assert all(type(value) is float for value in rewards) and reward.__name__ == "rahf_alignment"
    np.testing.assert_allclose(rewards, expected)
    conversations = [[{"role": "user", "content": "be brief"}, {"role": "user", "content": one}] for one in WISHES]
    answers = [[{"role": "assistant", "content": [{"type": "text", "text": one}]}] for one in completions]
    np.testing.assert_allclose(reward(prompts=conversations, completions=answers), expected)
    by_column = prompt_reward(tiny_critic, paint, "alignment", wish="caption")
    found = by_column(prompts=["?", "?"], completions=completions, caption=WISHES)
    np.testing.assert_allclose(found, expected)
    with pytest.raises(ArgumentError, match="one text in the column 'caption' for each of 2.*no such column"):
        by_column(prompts=WISHES, completions=completions)
    with pytest.raises(ArgumentError, match="column 'trainer_state'.*no such column; columns: prompts, completion_ids"):
        prompt_reward(tiny_critic, paint, wish="trainer_state")(prompts=WISHES, completions=completions, **columns)
    with pytest.raises(ArgumentError, match="expected a text or a conversation, found int"):
        reward(prompts=WISHES, completions=[3, 4])


def test_pictures_may_be_tensors_with_the_channels_first(tiny_critic):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install rahf[torch]")
    pictures = np.stack(paint(WISHES)).astype(np.float32) / 255
    tensors = torch.from_numpy(pictures).movedim(-1, 1)
    rewards = [prompt_reward(tiny_critic, lambda prompts, p=p: p)(WISHES, WISHES) for p in (pictures, tensors)]
    assert rewards[0] == rewards[1]


def test_what_the_critic_does_not_predict_is_refused(tiny_critic, monkeypatch):
    monkeypatch.setattr(tiny_critic, "outputs", Outputs(scores=("alignment",)))
    with pytest.raises(NotPredicted, match="does not predict 'overall'; it predicts alignment"):
        prompt_reward(tiny_critic, paint)
