"""The editor on a tiny random pipeline: strength 0 changes nothing, edits stay inside the mask, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.core.errors import ArgumentError
from rahf.saliency.augsal import attention_maps, edit_files
from rahf.saliency.augsal.editor import EditOptions, Editor
from rahf.saliency.augsal.properties import PROPERTIES
from tests.helpers import stable_diffusion_maker as maker

PICTURE = np.random.default_rng(0).random((8, 8, 3), np.float32)
SALIENCY = np.zeros((4, 4), np.float32)
SALIENCY[1:3, 1:3] = [[1, 2], [3, 4]]
QUICK = EditOptions(attention_steps=3, finish_steps=2, strength=0.2)


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline(model=maker.ATTENDING)


@pytest.fixture(scope="module")
def editor(pipe):
    return Editor(pipe, gamma=[1.0, -0.5, 0.5, 0.2])


def test_words_and_their_tokens(pipe):
    """Letters are the tokens of this vocabulary; the start token is number 0."""
    words = attention_maps.word_tokens(pipe.tokenizer, "a red, cat", 12)
    assert [(one.word, one.start, one.stop) for one in words][:2] == [("a", 1, 2), ("red", 2, 5)]
    assert words[-1].word == "cat" and words[-1].stop - words[-1].start == 3 and words[-1].offset == 7
    # What is cut off has no attention.
    assert [one.word for one in attention_maps.word_tokens(pipe.tokenizer, "a elephants", 6)] == ["a"]
    with pytest.raises(ArgumentError, match="has no word to attend to"):
        attention_maps.word_tokens(pipe.tokenizer, " ", 12)


def test_an_edit(editor, pipe):
    result = editor(PICTURE, "a cat", SALIENCY, dataclasses.replace(QUICK, property="color", color="red"))
    assert result.image.shape == (8, 8, 3) and result.mask.shape == (8, 8) and result.word in ("a", "cat")
    assert set(np.unique(result.mask)) <= {0, 1} and 0 < result.mask.sum() < 64
    assert result.attention.shape == (8, 8) and 0 <= result.attention.min() <= result.attention.max() <= 1
    assert 0 < result.strength <= 0.2 and np.abs(result.image - result.before).max() > 1e-4
    for name in PROPERTIES:
        changed = abs(result.properties_after[name] - result.properties_before[name])
        assert changed <= 2 * editor.std[name]
    # Strength 0 is the picture as inversion and autoencoder show it.
    np.testing.assert_allclose(result.before, pipe.decode(pipe.encode(PICTURE))[0], atol=2e-2)


def test_an_edit_that_goes_too_far_is_not_made(editor):
    """The standard deviations are so small that no edit is within; the loop ends with the picture unchanged."""
    strict = Editor(editor.pipe, gamma=editor.gamma, std=dict.fromkeys(PROPERTIES, 1e-9))
    options = dataclasses.replace(QUICK, property="brightness", max_rounds=3)
    result = strict(PICTURE, "a cat", SALIENCY, options)
    assert (result.rounds, result.strength) == (3, 0.0)
    np.testing.assert_array_equal(result.image, result.before)


@pytest.fixture
def files(pipe, tmp_path, monkeypatch):
    """A picture, a map of where people look, and pictures to find brightness in; the model is the tiny one."""
    rng = np.random.default_rng(1)
    (tmp_path / "fit").mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "fit" / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "cat.png")
    Image.fromarray((SALIENCY * 60).astype(np.uint8)).save(tmp_path / "gaze.png")
    monkeypatch.setattr(edit_files, "_loaded", lambda path: pipe)
    quick = ["--attention-steps", "3", "--saliency", str(tmp_path / "gaze.png")]
    return tmp_path, ["edit", str(tmp_path / "cat.png"), "--model", "tiny", "--prompt", "a cat", *quick]


def test_the_command(files, capsys):
    folder, arguments = files
    out = folder / "out"
    fitted = ["--property", "brightness", "--fit-gamma", str(folder / "fit"), "--out", str(out)]
    assert cli.main([*arguments, *fitted]) == 0
    entry = json.loads((out / "edit.json").read_text())
    assert (
        entry["word"] in ("a", "cat")
        and 0 < entry["mask_share"] < 1
        and set(entry["properties_after"]) == {*PROPERTIES}
    )
    sizes = {}
    for kind, name in entry["files"].items():
        with Image.open(out / name) as image:
            sizes[kind] = image.size
    assert sizes["edited"] == sizes["before"] == sizes["mask"] == (8, 8)
    assert sizes["before-after"][0] > 3 * 384  # three pictures in a row
    assert "direction of brightness in latents, of 6 pictures" in "".join(capsys.readouterr())


def test_the_command_says_what_to_do(files, capsys):
    folder, arguments = files
    for more, message in (
        ([], "name a folder of some hundred pictures with --fit-gamma DIR"),
        (["--fit-gamma", str(folder / "cat.png")], "expected a folder of pictures"),
        (["--size", "0"], "--size 0: expected at least 1 pixels"),
        (["--property", "size"], "property: expected contrast, brightness, color, found 'size'"),
    ):
        assert cli.main([*arguments, *more, "--out", str(folder / "out")]) == 1
        assert message in capsys.readouterr().err


def test_what_cannot_be_edited_is_refused(editor):
    for prompt, saliency, changes, message in (
        ("a cat", np.zeros((4, 4)), {}, "0 everywhere"),
        ("a cat", np.ones((4, 12)), {}, "another aspect: 12 x 4, the picture is 8 x 8"),
        ("a cat", -np.ones((4, 4)), {}, "finite values of at least 0"),
        ("a cat", SALIENCY, {"word": "dog"}, "the prompt has the words a, cat"),
        ("a cat", SALIENCY, {"property": "color", "color": "verylongcolours"}, "give a colour word"),
    ):
        with pytest.raises(ArgumentError, match=message):
            editor(PICTURE, prompt, saliency, dataclasses.replace(QUICK, **{"property": "brightness", **changes}))
    with pytest.raises(ArgumentError, match="edit one at a time"):
        editor(PICTURE[None], "a cat", SALIENCY, QUICK)
    for fields, message in (
        (dict(property="size"), "property: expected contrast, brightness, color"),
        (dict(strength=0.0), "strength: expected a number above 0 up to 1"),
        (dict(shrink=1.0), "below 1"),
        (dict(max_rounds=0), "max_rounds"),
        (dict(finish_steps=9), "finish_steps <= attention_steps"),
    ):
        with pytest.raises(ArgumentError, match=message):
            dataclasses.replace(QUICK, **fields)
    with pytest.raises(ArgumentError, match="gamma: expected 4 numbers"):
        Editor(editor.pipe, gamma=[1.0])
    with pytest.raises(ArgumentError, match="std: expected a number above 0 for red"):
        Editor(editor.pipe, std={name: 1.0 for name in PROPERTIES[1:]})
