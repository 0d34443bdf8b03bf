"""Feedback by name: numbers, regions, JSON, notebook view; words by generation; prompts that are too long."""

import json
import pickle
import re
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import UnknownNameError
from rahf.critic.critic import Critic
from rahf.critic.feedback import Feedback
from rahf.images import run_lengths
from rahf.images.regions import RegionOptions
from rahf.nn import functional
from rahf.text import split_words
from rahf.text.prompts import PromptWarning
from tests.helpers.critic_maker import PROMPTS
from tests.helpers.image_maker import smooth


def test_feedback_by_name(critic, pictures):
    feedback = critic.feedback(pictures, PROMPTS)
    arrays = critic(pictures, PROMPTS)
    for row, one in enumerate(feedback):
        assert isinstance(one, Feedback) and one.name == f"image {row}" and one.prompt == PROMPTS[row]
        assert list(one.scores) == list(SCORES) and list(one.heatmaps) == list(HEATMAPS)
        height, width = pictures[row].shape[:2]
        assert one.size == (height, width)
        for kind, name in enumerate(HEATMAPS):
            assert one.heatmaps[name].shape == (height, width) and one.heatmaps[name].dtype == np.float32
            if (height, width) == (32, 32):
                np.testing.assert_array_equal(one.heatmaps[name], arrays.heatmaps[row, :, :, kind])
            mean = arrays.heatmaps[row, :, :, kind].mean()
            np.testing.assert_allclose(one.heatmaps[name].mean(), mean, atol=0.03)
        assert one.words == split_words(PROMPTS[row]) and one.decided_by == "probability"
        probability = arrays.word_probabilities[row, : len(one.words)]
        assert one.misaligned_words == [w for w, p in zip(one.words, probability) if p > 0.5]
    assert any(one.misaligned_words for one in feedback)
    with pytest.raises(UnknownNameError, match="no heatmap is called 'artifact'. Known: implausibility, misalignment"):
        feedback[0].heatmap("artifact")


def feedback_of(heatmaps: np.ndarray, size: tuple[int, int], **fields) -> Feedback:
    defaults = dict(
        name="a <b>.png", prompt="a red, cat", scores=dict(zip(SCORES, (0.1, 0.25, 0.5, float("nan")))),
        words=["a", "red", "cat"], word_probabilities=np.array([0.1, 0.9, np.nan], np.float32),
        word_labels=np.array([1, 0, 1]), decided_by="probability", network_heatmaps=heatmaps,
        image=np.full((*size, 3), 200, np.uint8), size=size, model_id="m-1-abc", notes=["cut < off"],
    )  # fmt: skip
    return Feedback(**defaults | fields)


def test_heatmap_summary_by_hand():
    maps = np.zeros((4, 4, 2), np.float32)
    maps[0, 0, 0] = maps[1, 1, 0] = 0.5  # touch at a corner: one region
    maps[0:2, 3, 0] = 1.0, 0.75
    one = feedback_of(maps, (8, 40))  # a pixel of the network is 10 wide and 2 high
    summary = one.summary("implausibility")
    assert summary["mean"] == pytest.approx(2.75 / 16, abs=1e-6) and summary["max"] == 1.0
    assert summary["share_above"] == 0.25 and summary["region_count"] == 2
    assert summary["regions"] == [
        {"box": [30, 0, 40, 4], "share": 0.125, "peak": 1.0, "mean": 0.875},
        {"box": [0, 0, 20, 4], "share": 0.125, "peak": 0.5, "mean": 0.5},
    ]
    assert one.summary("implausibility", 0.8)["regions"][0]["box"] == [30, 0, 40, 2]
    assert one.summary("misalignment")["regions"] == [] and one.summary("misalignment")["max"] == 0
    # Boxes cover every original pixel that they touch, and end at the picture's edge.
    assert feedback_of(maps, (3, 5)).regions("implausibility")[0]["box"] == [3, 0, 5, 2]


def test_regions_of_both_heatmaps_and_coco():
    maps = np.zeros((4, 4, 2), np.float32)
    maps[0, 0, 0] = maps[1, 1, 0] = 0.5
    maps[0:2, 3, 0] = 1.0, 0.75
    maps[3, :2, 1] = 0.9
    one = feedback_of(maps, (8, 40))  # a pixel of the network is 20 of the original
    first, second, third = one.regions
    assert (first.heatmap, second.heatmap, third.heatmap) == ("implausibility", "implausibility", "misalignment")
    assert first.box == (30, 0, 40, 4) and (first.area, first.share) == (40, 0.125)
    assert (first.peak, first.mean) == (1.0, 0.875) and first.mass == pytest.approx(35)
    assert third.to_json() == {"heatmap": "misalignment", "box": [0, 6, 20, 8], "area": 40, "share": 0.125,
                               "peak": 0.9, "mean": 0.9, "mass": pytest.approx(36)}  # fmt: skip
    assert [len(one.find_regions("implausibility", RegionOptions(t))) for t in (0.5, 0.6)] == [2, 1]
    assert one.to_json()["regions"] == [region.to_json() for region in one.regions]
    assert pickle.loads(pickle.dumps(one.regions)) == one.regions
    coco = feedback_of(maps, (4, 4)).to_coco(image_id=7, first=5)
    assert coco["image"] == {"id": 7, "file_name": "a <b>.png", "width": 4, "height": 4, "prompt": "a red, cat"}
    assert [(a["id"], a["category_id"], a["bbox"], a["area"]) for a in coco["annotations"]] == [
        (5, 1, [3, 0, 1, 2], 2), (6, 1, [0, 0, 2, 2], 2), (7, 2, [0, 3, 2, 1], 2),
    ]  # fmt: skip
    mask = run_lengths.decode(coco["annotations"][1]["segmentation"])
    np.testing.assert_array_equal(mask, (maps[:, :, 0] == 0.5))
    nothing = feedback_of(np.full((4, 4, 2), np.nan, np.float32), (4, 4))
    assert nothing.regions == () and nothing.to_coco()["annotations"] == []


def test_to_json_is_plain_and_complete():
    maps = np.random.default_rng(0).random((8, 8, 2), np.float32)
    tree = json.loads(json.dumps(feedback_of(maps, (16, 16)).to_json(), allow_nan=False))
    assert tree["scores"] == {"plausibility": 0.1, "alignment": 0.25, "aesthetics": 0.5, "overall": None}
    assert tree["words"] == [
        {"word": "a", "misaligned": False, "probability": 0.1},
        {"word": "red", "misaligned": True, "probability": 0.9},
        {"word": "cat", "misaligned": False, "probability": None},
    ]
    assert tree["misaligned_words"] == ["red"]
    assert tree["model"] == "m-1-abc" and tree["notes"] == ["cut < off"]
    assert (tree["width"], tree["height"]) == (16, 16)
    assert set(tree["heatmaps"]) == set(HEATMAPS)


def test_notebook_view_escapes_and_marks():
    page = feedback_of(np.zeros((8, 8, 2), np.float32), (16, 24))._repr_html_()
    assert '<mark class="rahf-misaligned" title="misaligned: 90%">red</mark>' in page
    assert "a &lt;b&gt;.png" in page and "cut &lt; off" in page and "<b>" not in page
    assert len(re.findall("<mark ", page)) == 1
    panel = feedback_of(np.zeros((8, 8, 2), np.float32), (16, 24)).show()
    assert isinstance(panel, Image.Image) and panel.width > panel.height
    assert "misaligned: red" in repr(feedback_of(np.zeros((8, 8, 2), np.float32), (16, 24)))


def test_large_pictures_are_kept_small(critic):
    one = critic.feedback(np.full((300, 2100, 3), 0.25, np.float32), "a cat")[0]
    assert one.image.shape == (146, 1024, 3) and one.size == (300, 2100)
    assert one.image.dtype == np.uint8 and (one.image == 64).all()
    assert one.heatmap("misalignment").shape == (300, 2100)


def test_generation_decides_with_its_own_labels(critic, monkeypatch):
    """The labels are those of the generated text, aligned with the prompt."""
    from rahf.text import Tokenizer

    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "a red_0 bird cat_0")
    image = smooth(32, 32)
    one = critic.feedback(image, "a red cat", generate=True)[0]
    assert one.decided_by == "generation" and one.misaligned_words == ["red", "cat"]
    probabilities = critic(image, "a red cat").word_probabilities[0, :3]
    np.testing.assert_allclose(one.word_probabilities, probabilities, atol=1e-6)


def test_generation_is_what_the_network_generates(critic, pictures):
    ids, mask = critic.tokens(PROMPTS)
    seen = []

    class Recording(type(critic.tokenizer)):
        def decode(self, ids):
            seen.append(np.array(ids))
            return super().decode(ids)

    squares = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures]
    spied = Critic(critic.config, critic.params, Recording(critic.tokenizer.model))
    spied.feedback(squares, PROMPTS, generate=True, batch_size=2)

    @jax.jit
    def generated(params, images):
        model = functional.merge(critic.graphdef, params)
        return model.generate(model.fuse(model.image_tokens(images), ids, mask), 32)

    np.testing.assert_array_equal(np.stack(seen), generated(critic.params, np.stack(squares)))


def test_long_prompts_say_which_words_are_lost(critic):
    image = smooth(32, 32)
    with pytest.warns(PromptWarning, match=r"8 of 9 words are judged .*not judged: nine$") as caught:
        arrays = critic(image, "a b c d e f g h nine")
    assert caught[0].filename == __file__
    assert arrays.word_probabilities.shape == (1, 8) and (arrays.word_probabilities > 0).all()
    prompt = " ".join(f"word{i}" for i in range(10_000))
    lost = r"24 tokens; not read: word.*… and 99\d\d more; \d of 10000 words are judged .* and 99\d\d more"
    with pytest.warns(PromptWarning, match=lost):
        one = critic.feedback(image, prompt)[0]
    assert len(one.words) == len(one.word_probabilities) == len(one.word_labels) == 10_000
    judged = np.isfinite(one.word_probabilities)
    assert 0 < judged.sum() <= 8 and judged[: judged.sum()].all()
    assert (one.word_labels[~judged] == 1).all() and len(one.notes) == 2
    with pytest.warns(PromptWarning, match="not read"):
        critic.tokens(prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (_, streamed), = critic.iterate(image, prompt)  # fmt: skip
    assert streamed.notes == one.notes


def test_prompt_without_words_still_has_scores(critic):
    one = critic.feedback(smooth(8, 8), "!!!")[0]
    assert one.words == [] and one.misaligned_words == [] and np.isfinite(list(one.scores.values())).all()
