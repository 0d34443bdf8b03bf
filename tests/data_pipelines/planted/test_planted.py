"""Planted damage has exact masks, prompts become untrue in known words, and a folder becomes a dataset."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.planted import damage, example, pictures, prepare, wording
from data_pipelines.planted.example import Options
from data_pipelines.prepare.counts import Refused
from data_pipelines.synthetic import raters
from rahf import images
from rahf.cli.main import main
from rahf.core.errors import DatasetError
from rahf.text import split_words
from tests.helpers.image_maker import encode

PROMPTS = ("a brown dog on a sofa", "a red cat in a garden", "two white horses near a lake", "an old car on a street")


def photo(seed, height=96, width=128):
    """A picture with edges, textures and colours, uint8 [h,w,3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    fine = rng.integers(-40, 40, (height, width, 1))
    return np.clip(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs with prompts, one without, a broken one and one that is too small."""
    root = tmp_path_factory.mktemp("photos")
    (root / "deep").mkdir()
    for number, prompt in enumerate(PROMPTS):
        (root / "deep" / f"{number}.jpg").write_bytes(encode(photo(number), "JPEG"))
        (root / "deep" / f"{number}.txt").write_text(prompt + "\n")
    (root / "silent.png").write_bytes(encode(photo(9), "PNG"))
    (root / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (root / "tiny.png").write_bytes(encode(photo(1, 40, 80), "PNG"))
    return root


@pytest.mark.parametrize("kind", damage.KINDS)
def test_every_kind_changes_pixels_inside_of_the_mask_only(kind, monkeypatch):
    monkeypatch.setattr(damage, "_CHANGES", {kind: damage._CHANGES[kind]})
    monkeypatch.setattr(damage, "KINDS", (kind,))
    monkeypatch.setattr(damage, "DAMAGED", 1.0)
    planted = 0
    for seed in range(4):
        clean = photo(seed).astype(np.float32) / 255
        canvas = clean.copy()
        regions, mask = damage.plant(canvas, np.random.default_rng(seed))
        change = np.abs(canvas - clean).max(-1)
        assert mask.shape == change.shape and 0 <= mask.min() and mask.max() <= 1
        assert canvas.min() >= 0 and canvas.max() <= 1 and np.isfinite(canvas).all()
        assert change[mask == 0].max(initial=0) == 0
        planted += len(regions)
        for region in regions:
            assert region.kind == kind and region.visibility >= damage.VISIBLE
        total = sum(region.area for region in regions)
        assert total * 96**2 == pytest.approx(mask.sum(), rel=0.35)  # masks may touch
    assert planted >= 4


def test_overlapping_cells_are_taken_apart_and_put_together():
    pixels = np.random.default_rng(0).random((37, 50, 3)).astype(np.float32)
    again = damage._synthesise(damage._analyse(pixels, 8), pixels.shape, 8)
    np.testing.assert_allclose(again, pixels, atol=1e-6)


def test_a_plain_picture_gets_no_damage_that_nobody_could_see(monkeypatch):
    monkeypatch.setattr(damage, "KINDS", ("warped",))
    monkeypatch.setattr(damage, "_CHANGES", {"warped": damage._CHANGES["warped"]})
    canvas = np.full((64, 64, 3), 0.5, np.float32)
    regions, mask = damage.plant(canvas, np.random.default_rng(1))
    assert regions == [] and not mask.any() and (canvas == 0.5).all()


def test_untrue_words_are_labelled_and_all_others_are_not():
    prompts = wording.Prompts(PROMPTS)
    kinds = set()
    for seed in range(200):
        own = PROMPTS[seed % 4]
        one = prompts.untrue(np.random.default_rng(seed), own)
        kinds.update(one.faults or ("true",))
        assert one.words == tuple(split_words(one.prompt)) and len(one.labels) == len(one.words) == len(one.content)
        assert all(label or content for label, content in zip(one.labels, one.content))
        assert bool(one.faults) == (0 in one.labels)
        for word, label in zip(one.words, one.labels):
            assert label or word.casefold() not in own.split()
        if one.faults[:1] == ("swapped word",):
            changed = [a != b for a, b in zip(one.words, split_words(own), strict=True)]
            assert changed == [not label for label in one.labels]
        if one.faults == ("missing word",):
            assert (
                one.prompt.startswith(own + " and a")
                and one.labels[-1] == 0
                and sum(one.labels) == len(own.split()) + 2
            )
    assert kinds == {"true", *wording.KINDS}


def test_prompts_that_cannot_be_made_untrue_stay_true():
    rng = np.random.default_rng(0)
    assert all(wording.Prompts(["the"] * 3).untrue(rng, "the").labels)
    one = wording.Prompts(["of the", "a dog"])
    assert all(all(one.untrue(rng, "of the").labels) for _ in range(20))


def test_a_swapped_word_is_replaced_in_its_own_place():
    words = split_words("cats, a cat: cat")
    assert wording._replace_word("cats, a cat: cat", words, 2, "dog") == "cats, a dog: cat"


def test_clicks_of_wide_pictures_stay_inside():
    place = damage.Damage("x", 1.9, 0.5, 0.1, 1.0, 0.5, 0.03)
    quality = np.full(4, 0.5)
    annotations = raters.annotate(np.random.default_rng(0), 100, [place] * 4, (), (1,), quality, aspect=2.0)
    points = np.array([p for one in annotations for p in one.points_implausible])
    assert points[:, 0].max() > 150 and points[:, 0].max() <= 200 and points[:, 1].max() <= 100


def test_an_example_is_a_function_of_file_copy_and_seed(folder):
    picture = pictures.Picture("deep/0.jpg", PROMPTS[0])
    prompts = wording.Prompts(PROMPTS)
    one, again, other = (example.make(str(folder), picture, copy, Options(), prompts) for copy in (0, 0, 1))
    assert one.record.image == again.record.image and one.truth == again.truth
    assert one.record.image != other.record.image
    assert one.record.scores.shape == (4,) and not np.isnan(one.record.scores).any()


def test_what_nobody_knows_is_missing(folder):
    silent = example.make(str(folder), pictures.Picture("silent.png", None), 0, Options(size=80, crop=True)).record
    assert silent.prompt == "a photo" and store.missing_labels(silent) == [
        "alignment",
        "overall",
        "misalignment",
        "words",
    ]
    height, width, _ = images.load_rgb(silent.image).shape
    assert height == width and 64 <= height <= 80
    prompts = wording.Prompts(PROMPTS)
    examples = [
        example.make(str(folder), pictures.Picture("deep/1.jpg", PROMPTS[1]), n, Options(), prompts) for n in range(12)
    ]
    for one in examples:
        assert (one.record.misalignment is None) == bool(one.truth["faults"])
    assert len({bool(one.truth["faults"]) for one in examples}) == 2


def test_exact_masks_can_be_the_labels(folder):
    one = example.make(str(folder), pictures.Picture("deep/2.jpg", PROMPTS[2]), 1, Options(exact=True))
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(one.truth["mask_png"]))))
    np.testing.assert_array_equal(images.load_grey(one.record.implausibility), mask)


@pytest.mark.parametrize("name,kind", [("broken.jpg", "undecodable"), ("tiny.png", "too small")])
def test_pictures_that_cannot_be_used_are_refused(folder, name, kind):
    with pytest.raises(Refused) as why:
        example.make(str(folder), pictures.Picture(name, None), 0, Options())
    assert why.value.kind == kind and name in str(why.value)


def test_a_folder_becomes_a_dataset(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_ON_SHEET", 2)
    out = tmp_path / "planted"
    arguments = ["prepare", "planted", "--images", str(folder), "--out", str(out), "--copies", "2", "--workers", "1"]
    assert main([*arguments, "--dev", "0.3", "--test", "0"]) == 3  # some were refused
    counts = json.loads((out / "prepare.json").read_text())["summary"]["splits"]
    total = {row: sum(split[row] for split in counts.values()) for row in counts["train"]}
    assert (total["records"], total["joined"], total["undecodable"], total["too small"]) == (14, 10, 2, 2)
    assert total["alignment"] == total["words"] == 8 and total["implausibility"] == 10
    splits = store.splits(out)
    by_split = {
        name: {store.open_split(out, name)[n].uid.split("#")[0] for n in range(splits[name])} for name in splits
    }
    assert not set.intersection(*by_split.values()) and sum(splits.values()) == 10
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert {line["file"] for line in refused} == {"broken.jpg", "tiny.png"}
    truth = [json.loads(line) for line in (out / "truth-train.jsonl").read_text().splitlines()]
    assert [line["uid"] for line in truth] == [store.open_split(out, "train")[n].uid for n in range(splits["train"])]
    assert images.load_rgb((out / "sheet.png").read_bytes()).shape[1] > 500
    assert store.tokenizer_path(out).is_file()


def test_prompts_come_from_captions_too(folder, tmp_path):
    captions = tmp_path / "captions.jsonl"
    rows = [{"uid": "silent", "caption": "a  green\nboat"}, {"image": "tiny.png", "prompt": "a dot"}]
    captions.write_text("\n".join(map(json.dumps, rows)))
    by_name = dict(pictures.find(folder, captions).pictures)
    assert by_name["silent.png"] == "a green boat" and by_name["deep/0.jpg"] == PROMPTS[0]
    assert by_name["tiny.png"] == "a dot"  # the columns of `rahf select` and `rahf score`


def test_prompts_that_cannot_be_read_are_listed_and_cost_no_picture(folder, tmp_path, capsys):
    root = shutil.copytree(folder, tmp_path / "pictures")
    rows = ['{"uid": "silent", "caption": 7}', "no JSON", '{"uid": "silent", "caption": "a green boat"}']
    (root / "captions.jsonl").write_text("\n".join(rows))
    (root / "silent.txt").write_bytes(b"\xff\xfe caf\xe9")
    (root / "deep" / "0.txt").write_bytes(b"x" * 1_000_001)
    (root / "deep" / "1.txt").unlink()
    (root / "deep" / "1.txt").mkdir()
    found = pictures.find(root)
    assert dict(found.pictures)["silent.png"] == "a green boat" and dict(found.pictures)["deep/0.jpg"] is None
    assert main(["prepare", "planted", "--images", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]) == 3
    lines = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in lines if line["kind"] == "unreadable prompt"]
    assert reasons == found.problems and len(reasons) == 5
    for words in (
        "line 1: caption is 7, expected text",
        "line 2: not JSON",
        "silent.txt: not a prompt in UTF-8",
        "0.txt",
        "1.txt: not a prompt",
    ):
        assert any(words in reason for reason in reasons), words
    assert "line 2: not JSON" in capsys.readouterr().out


@pytest.mark.parametrize("change,message", [
    (dict(images="nowhere"), "does not exist; expected a folder of pictures"),
    (dict(copies=0), "--copies 0"),
    (dict(options=Options(size=8)), "--size 8: expected 64 to 2048"),
    (dict(options=Options(default_prompt=" , ")), "--default-prompt: expected at least one word"),
    (dict(dev=0.6, test=0.5), "whose sum is less than 1"),
    (dict(dev=1 - 1e-9, test=0), "are held out; lower --dev and --test"),
])  # fmt: skip
def test_bad_input_is_named_and_leaves_nothing_behind(folder, tmp_path, change, message):
    arguments = {"images": folder, "out": tmp_path / "out", "progress": False, **change}
    with pytest.raises(DatasetError, match=message):
        prepare.prepare(**arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_broken_pictures_names_the_first_reason(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no")
    with pytest.raises(DatasetError, match="no picture can be trained on: 1 were refused. First reason: a.jpg"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", dev=0, test=0, progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no picture in it"):
        pictures.find(tmp_path / "empty")
