"""`rahf predict`: every kind of image runs, rubbish is one line each, inputs are never overwritten."""

import functools
import hashlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import rahf
from data_pipelines.regions.prepare import prepare as prepare_regions
from rahf.cli import main as cli
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import CheckpointError
from rahf.critic import loading
from rahf.critic import predict as predict_lib
from rahf.critic.predict import SUFFIXES
from tests.helpers.image_maker import encode, png16, smooth

PICTURE = smooth(40, 60)


class Result:
    """What a call of `predict` did."""

    def __init__(self, model, files, prompt="a red cat", **options):
        self.console, self.errors = (Console(file=io.StringIO(), width=100) for _ in range(2))
        files = [str(file) for file in files]
        options = {"batch_size": 4, "console": self.console, "errors": self.errors} | options
        self.code = predict_lib.predict(model, files, prompt, **options)
        self.out, self.err = self.console.file.getvalue(), self.errors.file.getvalue()
        self.lines = self.err.splitlines()
        out = pathlib.Path(options.get("out") or "predictions")
        file = options.get("json_file") or out / "predictions.json"
        self.json = json.loads(pathlib.Path(file).read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current directory of every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Loading the same model for every call would take most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", functools.lru_cache(loading.load))
        yield


@pytest.fixture
def cat(folder):
    file = folder / "cat.png"
    file.write_bytes(encode(PICTURE))
    return file


def test_writes_overlays_heatmaps_and_json(tiny_run, cat):
    result = Result(tiny_run, [cat], "a red cat, on a mat")
    assert result.code == 0 and result.err == ""
    written = sorted(str(p) for p in pathlib.Path("predictions").iterdir())
    names = ["cat_feedback.png", "cat_implausibility.png", "cat_misalignment.png", "predictions.json"]
    assert written == [f"predictions/{name}" for name in names]
    critic = rahf.load(tiny_run)
    expected = critic.feedback(cat, "a red cat, on a mat")[0]
    assert result.json["model"] == critic.model_id and result.json["errors"] == []
    entry = result.json["images"][0]
    assert entry["image"] == str(cat) and entry["prompt"] == "a red cat, on a mat"
    for name in SCORES:
        assert entry["scores"][name] == pytest.approx(expected.scores[name], abs=1e-5)
    assert entry["misaligned_words"] == expected.misaligned_words
    for name in HEATMAPS:
        with Image.open(entry["files"][name]) as stored:
            assert stored.mode == "L" and stored.size == (60, 40)
            np.testing.assert_allclose(np.asarray(stored) / 255, expected.heatmaps[name], atol=0.51 / 255)
    with Image.open(entry["files"]["feedback"]) as panel:
        assert panel.mode == "RGB" and panel.width > 1000 and panel.height > 384


def test_summary_in_the_terminal(tiny_run, cat):
    result = Result(tiny_run, [cat], "a red cat")
    entry = result.json["images"][0]
    for name in SCORES:
        assert f"{name}" in result.out and f"{entry['scores'][name]:.2f}" in result.out
    marked = " ".join(w["word"] + "✗" * w["misaligned"] for w in entry["words"])
    assert marked in result.out and "✗" in marked
    share = entry["heatmaps"]["implausibility"]["share_above"]
    assert f"implausibility: {share:.1%} of the picture in" in result.out
    assert "1 done; pictures in predictions, numbers in predictions/predictions.json" in result.out


def kinds() -> dict[str, bytes]:
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 128, np.uint8)])
    image = Image.fromarray(PICTURE)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "grey.png": encode(PICTURE[..., 0]),
        "palette.png": encode(image.quantize(16)),
        "alpha.png": encode(rgba),
        "deep.png": png16(PICTURE.astype(np.uint16) * 257),
        "deep_grey.png": encode(Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)),
        "bits.png": encode(image.convert("1")),
        "print.jpg": encode(image.convert("CMYK"), "JPEG"),
        "turned.jpg": encode(image, "JPEG", exif=exif),
        "grey.jpg": encode(image.convert("L"), "JPEG"),
        "new.webp": encode(image, "WEBP"),
        "alpha.webp": encode(Image.fromarray(rgba), "WEBP"),
        "moving.gif": encode(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "one.png": encode(PICTURE[:1, :1]),
        "long.png": encode(smooth(3, 900)),
        "tall.png": encode(smooth(900, 2)),
        "no_extension": encode(image, "BMP"),
    }


def test_every_kind_of_image_runs(tiny_run, folder):
    files = kinds()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    result = Result(tiny_run, files)
    assert (result.code, result.err) == (0, "")
    sizes = {entry["image"]: (entry["width"], entry["height"]) for entry in result.json["images"]}
    assert list(sizes) == list(files)
    special = {"turned.jpg": (40, 60), "one.png": (1, 1), "long.png": (900, 3), "tall.png": (2, 900)}
    assert sizes == {name: special.get(name, (60, 40)) for name in files}
    # 16 bit is the same picture; half transparent over white is not.
    scores = {entry["image"]: list(entry["scores"].values()) for entry in result.json["images"]}
    (folder / "plain.png").write_bytes(encode(PICTURE))
    plain = list(Result(tiny_run, ["plain.png"]).json["images"][0]["scores"].values())
    np.testing.assert_allclose(scores["deep.png"], plain, atol=1e-5)
    assert np.abs(np.subtract(scores["alpha.png"], plain)).max() > 1e-3
    np.testing.assert_allclose(scores["deep_grey.png"], scores["grey.png"], atol=1e-5)
    for entry in result.json["images"]:
        with Image.open(entry["files"]["feedback"]) as panel:
            assert 500 < panel.width < 4000 and panel.height < 1000  # also if 300 times as wide as high
        for name in HEATMAPS:
            with Image.open(entry["files"][name]) as stored:
                assert stored.size == sizes[entry["image"]]


def bomb(side: int = 60_000) -> bytes:
    """A small PNG that says it is 3.6 gigapixels large."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def rubbish(folder: pathlib.Path) -> dict[str, str]:
    """Bad files and what must be said about each."""
    encoded = encode(smooth(200, 200))
    jpeg = encode(smooth(200, 200), "JPEG")
    for name, data in {
        "cut.png": encoded[: len(encoded) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "notes.txt": b"not a picture\n" * 50,
        "bomb.png": bomb(),
        "two\nlines\x1b[31m.png": b"nothing",
    }.items():
        (folder / name).write_bytes(data)
    (folder / "directory.png").mkdir()
    return {
        "cut.png": "cut.png: truncated or damaged PNG",
        "cut.jpg": "cut.jpg: truncated or damaged JPEG",
        "empty.png": "empty.png: the file is empty",
        "notes.txt": "notes.txt: not an image that can be read",
        "bomb.png": "bomb.png: 60000 x 60000 = 3600.0 megapixels",
        "directory.png": "directory.png: Is a directory",
        "missing.png": "missing.png: No such file or directory",
        "two\nlines\x1b[31m.png": "two lines�[31m.png: not an image",
        "": ": No such file or directory",
        "nul\0.png": "nul�.png: ",
    }


def test_rubbish_is_one_line_each_and_the_others_run(tiny_run, folder, cat):
    bad = rubbish(folder)
    good = [str(cat), str(folder / "dog.jpg")]
    (folder / "dog.jpg").write_bytes(encode(smooth(50, 70, 1), "JPEG"))
    names = list(bad)
    result = Result(tiny_run, [names[0], good[0], *names[1:], good[1]], batch_size=2)
    assert result.code == 3
    assert len(result.lines) == len(bad)
    for line, expected in zip(result.lines, bad.values()):
        assert line.startswith("error: " + expected), line
    assert [entry["image"] for entry in result.json["images"]] == good
    assert [error["image"] for error in result.json["errors"]] == names
    assert f"2 done, {len(bad)} failed" in result.out
    alone = Result(tiny_run, good)
    for a, b in zip(result.json["images"], alone.json["images"]):
        np.testing.assert_allclose(list(a["scores"].values()), list(b["scores"].values()), atol=1e-5)


def test_only_rubbish(tiny_run, folder):
    result = Result(tiny_run, ["missing.png"])
    assert result.code == 1 and len(result.lines) == 1 and result.json["images"] == []
    assert "0 done, 1 failed; errors in predictions/predictions.json" in result.out


def test_command_line(tiny_run, cat, folder):
    """The command as a user calls it: nothing but our lines on stderr, and the exit code."""
    (folder / "empty.png").touch()
    command = [sys.executable, "-m", "rahf.cli", "predict", str(tiny_run), "empty.png", str(cat)]
    done = subprocess.run([*command, "--prompt", "a cat"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "error: empty.png: the file is empty\n"
    assert "1 done, 1 failed" in done.stdout and (folder / "predictions" / "cat_feedback.png").is_file()


def test_file_names_are_safe_numbered_and_never_an_input(tiny_run, folder):
    data = encode(PICTURE)
    (folder / "a").mkdir()
    out = folder / "predictions"
    out.mkdir()
    # cat.png would be written to cat_feedback.png, which is an input here.
    files = [
        folder / "cat.png", folder / "a" / "cat.jpg", folder / "a" / "CAT.png", out / "cat-4_feedback.png",
        out / "cat_misalignment.png", folder / "a" / ".. odd; name$(x).png",
        folder / "a" / ("é" * 120 + ".png"), folder / "a" / "...png", folder / "cat.png",
    ]  # fmt: skip
    for file in files:
        file.write_bytes(data)
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in files}
    result = Result(tiny_run, files)
    assert result.code == 0, result.err
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in files} == before
    panels = [pathlib.Path(entry["files"]["feedback"]).name for entry in result.json["images"]]
    assert panels == [
        "cat-2_feedback.png", "cat-3_feedback.png", "CAT-5_feedback.png", "cat-4_feedback_feedback.png",
        "cat_misalignment_feedback.png", "odd_name_x_feedback.png", "é" * 50 + "_feedback.png",
        "image_feedback.png", "cat-6_feedback.png",
    ]  # fmt: skip
    written = {path.resolve() for path in folder.rglob("*") if path.is_file()} - {f.resolve() for f in files}
    assert all(path.parent == out.resolve() for path in written)
    assert len(written) == 3 * len(files) + 1
    assert not [path for path in written if path.name.startswith(".")]  # no temporary files stay


def test_a_link_in_the_output_folder_is_not_followed(tiny_run, cat, folder):
    """An old output that is a link to something else is replaced, not written through."""
    precious = folder / "precious.txt"
    precious.write_text("mine")
    (folder / "predictions").mkdir()
    (folder / "predictions" / "cat_feedback.png").symlink_to(precious)
    assert Result(tiny_run, [cat]).code == 0
    assert precious.read_text() == "mine"


def test_json_elsewhere_but_not_over_an_image(tiny_run, cat):
    result = Result(tiny_run, [cat], out="there", json_file="sub/numbers.json")
    assert result.code == 0 and sorted(os.listdir("there")) == sorted(f"cat_{k}.png" for k in SUFFIXES)
    assert result.json["images"][0]["files"]["feedback"] == "there/cat_feedback.png"
    before = cat.read_bytes()
    with pytest.raises(ValueError, match="would overwrite an image"):
        Result(tiny_run, [cat], json_file="./cat.png")
    assert cat.read_bytes() == before


def test_regions_as_coco_which_a_dataset_can_be_made_of(tiny_run, cat, folder):
    result = Result(tiny_run, [cat, cat, "absent.png"], coco_file="marked.json")
    coco = json.loads((folder / "marked.json").read_text())
    assert [(one["id"], one["file_name"], one["width"], one["height"]) for one in coco["images"]] == [
        (1, "cat.png", 60, 40), (2, "cat.png", 60, 40),
    ]  # fmt: skip
    regions = [one for image in result.json["images"] for one in image["regions"]]
    assert len(coco["annotations"]) and [one["id"] for one in coco["annotations"]] == [
        *range(1, len(coco["annotations"]) + 1)
    ]
    assert {one["heatmap"] for one in regions} <= {one["name"] for one in coco["categories"]} == set(HEATMAPS)
    summary = prepare_regions("marked.json", folder, "made", dev=0, test=0, progress=False)
    assert summary.total("joined") == 1 and summary.total("duplicates") == 1
    with pytest.raises(ValueError, match="--coco .*cat.png would overwrite an image"):
        Result(tiny_run, [cat], coco_file=cat)


def test_prompts_from_text_files_beside_the_images(tiny_run, cat, folder):
    (folder / "dog.png").write_bytes(encode(PICTURE))
    (folder / "cat.txt").write_text("\ufeffa red\n cat \n", encoding="utf-8")
    result = Result(tiny_run, [cat, "dog.png"], None)
    assert result.code == 3 and result.json["images"][0]["prompt"] == "a red cat"
    assert result.lines == ["error: dog.png: no prompt; give --prompt TEXT or write it to dog.txt"]
    missing = Result(tiny_run, [cat, "bird.png"], None)
    assert missing.lines == ["error: bird.png: No such file or directory"] and missing.code == 3
    (folder / "dog.txt").write_bytes(b"\xff\xfe")
    error = Result(tiny_run, [cat, "dog.png"], None).err
    assert "its prompt cannot be read: dog.txt: not UTF-8 text" in error
    (folder / "dog.txt").write_text(" \n")
    lines = Result(tiny_run, [cat, "dog.png"], None).lines
    assert lines == ["error: dog.png: its prompt file dog.txt is empty"]
    (folder / "cat.txt").unlink()
    (folder / "dog.txt").unlink()
    remedies = r"no prompt: give --prompt TEXT.*--prompts FILE.*beside each image \(cat.txt\)"
    with pytest.raises(ValueError, match=remedies):
        Result("no model is needed to say so", ["cat.png", "dog.png"], None)


def test_prompts_from_a_file(tiny_run, cat, folder):
    lines = folder / "prompts.txt"
    lines.write_text("a red cat\r\ntwo dogs\n\n")
    result = Result(tiny_run, [cat, cat], None, prompts_file=lines)
    assert [entry["prompt"] for entry in result.json["images"]] == ["a red cat", "two dogs"]
    assert Result(tiny_run, [cat, cat], ["x", "y"]).json["images"][1]["prompt"] == "y"
    with pytest.raises(ValueError, match="1 images but 2 prompts"):
        Result(tiny_run, [cat], None, prompts_file=lines)
    with pytest.raises(ValueError, match="--prompt or --prompts, not both"):
        Result(tiny_run, [cat], "a", prompts_file=lines)
    with pytest.raises(ValueError, match="the prompt is empty"):
        Result(tiny_run, [cat], " ")
    with pytest.raises(ValueError, match="no images"):
        Result(tiny_run, [])


def test_long_prompts_are_noted_in_one_line_each(tiny_run, cat):
    result = Result(tiny_run, [cat], " ".join(f"word{i}" for i in range(100)))
    assert result.code == 0 and len(result.lines) == 2
    assert result.lines[0].startswith(f"note: {cat}: the model reads 24 tokens; not read: word")
    assert "of 100 words are judged" in result.lines[1]
    assert result.json["images"][0]["notes"] == [line.split(": ", 2)[2] for line in result.lines]


def test_words_by_generation(tiny_run, cat):
    entry = Result(tiny_run, [cat], generate=True).json["images"][0]
    assert entry["words_decided_by"] == "generation"
    expected = rahf.load(tiny_run).feedback(cat, "a red cat", generate=True)[0]
    assert entry["misaligned_words"] == expected.misaligned_words


def test_no_model_no_files(cat, folder):
    with pytest.raises(CheckpointError, match="no such file or directory"):
        Result(folder / "nowhere", [cat])
    assert not list(folder.rglob("*_feedback.png"))


@pytest.mark.parametrize(
    "prompt, message",
    [
        ("cat.png", "'cat.png' is an image file, not a text; write IMAGE --prompt TEXT"),
        ("p.txt", "--prompt: 'p.txt' is a file, not a text; to read prompts from it, give --prompts FILE"),
        ("./p.txt", "--prompt: './p.txt' is a file, not a text; "),
        ("typo.jsonl", "--prompt: 'typo.jsonl' is a file, not a text; "),
        (["a cat", "p.txt"], "prompt 1: 'p.txt' is a file, not a text; give the text in it"),
    ],
)
def test_a_file_where_a_prompt_belongs(cat, folder, prompt, message):
    (folder / "p.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match=message):
        predict_lib.given_prompts([str(cat)] * (2 if isinstance(prompt, list) else 1), prompt, None)


@pytest.mark.parametrize("prompt", ["cat", "a red cat.", "Mr. Fox", "a p.txt file", "v2.0", "and/or", "…"])
def test_a_prompt_is_no_file(cat, folder, prompt):
    (folder / "cat").write_text("a file that happens to have a name of one word")
    assert predict_lib.given_prompts([str(cat)], prompt, None) == [prompt]


def test_images_and_prompt_swapped_on_the_command_line(capsys, folder):
    assert cli.main(["predict", "model", "a red cat", "--prompt", "b.png"]) == 1
    error = capsys.readouterr().err
    assert error == "rahf: images and prompts seem to be swapped: 'b.png' is no text; write IMAGE --prompt TEXT\n"


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_prompt(tmp_path, character):
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"a red{character}star\r\ntwo dogs\n\n".encode())
    assert predict_lib.given_prompts(["a.png", "b.png"], None, file) == [f"a red{character}star", "two dogs"]
