"""`rahf mask`: files of masks at the pictures' sizes, empty ones that say so, nothing given is overwritten."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from rahf.cli import main as cli
from rahf.cli import mask as command
from rahf.steer.mask_files import mask_files
from rahf.steer.masks import MaskOptions
from tests.helpers.critic_maker import ColourCritic, plain
from tests.helpers.image_maker import encode

OPTIONS = MaskOptions(dilation=0)


def damaged() -> np.ndarray:
    """Green, 32 high and 16 wide, a red block above and a blue one below."""
    image = plain(0, 200, 0, (32, 16))
    image[4:12, 4:8] = (255, 0, 0)
    image[24:28, 8:12] = (0, 0, 255)
    return image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory of every test, with two pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(encode(damaged()))
    (tmp_path / "good.png").write_bytes(encode(plain(10, 200, 0, (16, 16))))
    return tmp_path


@pytest.fixture
def colours(monkeypatch):
    """Any model that is loaded is the critic that judges colours."""
    monkeypatch.setattr("rahf.critic.loading.load", lambda path: ColourCritic())


def grey(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_a_mask_at_the_pictures_size(folder):
    written, errors = mask_files(ColourCritic(), ["bad.png"], "mask.png", "a leaf", options=OPTIONS)
    assert errors == [] and sorted(p.name for p in folder.iterdir()) == ["bad.png", "good.png", "mask.png"]
    mask = grey("mask.png")
    assert mask.shape == (32, 16) and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask > 0, written[0].mask.pixels)
    # The network's cells are 4 x 2 pixels: bilinear between them 0.3 is reached up to half a cell beyond.
    assert mask[4:12, 4:8].all() and not mask[14:].any() and not mask[:2].any() and not mask[:, 10:].any()


def test_the_other_heatmap_feather_latent_and_overlay(folder):
    options = MaskOptions(dilation=0, feather=0.1)
    written, _ = mask_files(
        ColourCritic(), ["bad.png"], "m.png", "a leaf", which="misalignment", options=options, latent_grid=8,
        overlay=True, json_file="m.json",
    )  # fmt: skip
    mask, latent = grey("m.png"), grey("m_latent.png")
    assert mask[24:28, 8:12].min() == 255 and 0 < mask[30, 10] < 255 and not mask[:18].any()
    np.testing.assert_array_equal(latent, (mask.reshape(4, 8, 2, 8).max((1, 3)) > 0) * 255)
    with Image.open("m_overlay.png") as shown:
        assert shown.mode == "RGB" and shown.width > 500
    entry = json.loads((folder / "m.json").read_text())[0]
    assert entry["image"] == "bad.png" and entry["latent"] == "m_latent.png" and not entry["empty"]
    assert entry["coverage"] == pytest.approx((mask > 0).mean(), abs=1e-6) and entry["components"] == 1
    assert written[0].overlay.name == "m_overlay.png"


def test_many_pictures_into_a_folder(folder, colours, capsys):
    (folder / "sub").mkdir()
    (folder / "sub" / "BAD.png").write_bytes(encode(damaged()))
    (folder / "rubbish.png").write_text("no")
    images = ["bad.png", "good.png", "rubbish.png", "nowhere.png", "sub/BAD.png"]
    assert cli.main(["mask", "model", *images, "--prompt", "a leaf", "--out", "masks", "--dilation", "0"]) == 3
    names = ["BAD-2_mask.png", "bad_mask.png", "good_mask.png"]
    assert sorted(p.name for p in (folder / "masks").iterdir()) == names
    np.testing.assert_array_equal(grey("masks/BAD-2_mask.png"), grey("masks/bad_mask.png"))
    assert not grey("masks/good_mask.png").any()
    out, err = capsys.readouterr()
    covered = (grey("masks/bad_mask.png") > 0).mean()
    assert out.splitlines() == [
        f"bad.png → masks/bad_mask.png: {covered:.1%} of the picture, 1 region",
        "good.png → masks/good_mask.png: empty, leave the picture as it is",
        f"sub/BAD.png → masks/BAD-2_mask.png: {covered:.1%} of the picture, 1 region",
    ]
    lines = err.splitlines()
    assert lines[0] == "good.png: nothing to repair: no value reaches the threshold 0.3; the highest is 0.04"
    assert (
        lines[1].startswith("error: rubbish.png: not an image")
        and lines[2] == "error: nowhere.png: No such file or directory"
    )


def test_much_coverage_is_said(folder, colours, capsys):
    (folder / "red.png").write_bytes(encode(plain(255, 0, 0, (16, 16))))
    assert cli.main(["mask", "model", "red.png", "--prompt", "a leaf", "--out", "m.png"]) == 0
    assert "red.png: the mask covers 100% of the picture, more than 60%" in capsys.readouterr().err


def test_prompts_from_beside_and_exif(folder, colours):
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(damaged()).save(buffer, "JPEG", exif=turned, quality=95)
    (folder / "turned.jpg").write_bytes(buffer.getvalue())
    (folder / "turned.txt").write_text("a leaf")
    assert cli.main(["mask", "model", "turned.jpg", "--out", "m.png"]) == 0
    assert grey("m.png").shape == (16, 32)  # as people see it


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["bad.png", "good.png", "--out", "m.png"], "--out m.png: 2 pictures have no place in one file; give a folder"),
        (["bad.png", "--out", "m.jpg"], "--out m.jpg: masks are PNG files; give a name that ends in .png, or a folder"),
        (["bad.png", "--out", "bad.png"], "bad.png: would be overwritten; give another --out"),
        (["bad.png", "--out", "m.png", "--json", "bad.png"], "bad.png: would be overwritten; give another --out"),
        (["bad.png", "--out", "m.png", "--threshold", "3"], "threshold: expected above 0 and at most 1, found 3.0"),
        (
            ["bad.png", "--out", "m.png", "--latent-grid", "0"],
            "latent grid: expected at least 1 pixel per cell, found 0",
        ),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_loaded(folder, capsys, arguments, error):
    assert cli.main(["mask", "nowhere", *arguments, "--prompt", "a leaf"]) == 1
    assert capsys.readouterr().err == f"rahf: {error}\n"


def test_help_says_the_real_defaults():
    for name, value, _ in command._OPTIONS:
        assert getattr(MaskOptions(), name.replace("-", "_")) == value, name


def test_equals_predict(folder, tiny_critic):
    """The heatmap under the mask is the one that `rahf predict` shows."""
    options = MaskOptions(threshold=0.4, min_area=0, dilation=0, max_hole=0, warn_above=1)
    mask_files(tiny_critic, ["bad.png"], "m.png", "a red cat", options=options)
    heatmap = tiny_critic.feedback("bad.png", "a red cat")[0].heatmaps["implausibility"]
    clear = np.abs(heatmap - 0.4) > 1e-4
    np.testing.assert_array_equal((grey("m.png") > 0)[clear], (heatmap >= 0.4)[clear])
    assert clear.mean() > 0.9 and 0 < (heatmap >= 0.4).mean() < 1
