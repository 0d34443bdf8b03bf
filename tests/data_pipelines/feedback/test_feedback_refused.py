"""`rahf prepare feedback`: lines that cannot be used, paths that lead out, and files that are none."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pipelines.feedback.prepare import prepare
from rahf.core.errors import DatasetError
from rahf.images import check_header, load_rgb
from tests.helpers.feedback_maker import GOOD, grey, picture, run, write_three
from tests.helpers.richhf18k_maker import contents, refused


def bad(**fields):
    return {"image": "ok.png", "uid": f"bad {sorted(fields)}", **GOOD, **fields}


def annotated(**fields):
    return bad(annotators=[{"scores": {"overall": 3}}, fields], scores=None)


REFUSED = [
    ("missing image", bad(image="absent.png"), "no file 'absent.png' below --images"),
    ("missing image", {"uid": "absent", **GOOD}, r"no file 'absent' + .jpg | .jpeg | .png | .webp below"),
    ("missing map", bad(misalignment="absent.png"), "no file 'absent.png'"),
    ("missing prompt", bad(prompt=" "), "no field 'prompt'"),
    ("missing prompt", {"image": "ok.png", "scores": {"overall": 1}}, "no field 'prompt'"),
    ("missing field", GOOD, "neither 'image' nor 'uid'"),
    ("undecodable", bad(image="cut.png"), "cut.png: truncated or damaged PNG"),
    ("undecodable", bad(image="huge.png"), "more than the limit of 64.0"),
    ("undecodable", bad(image="note.txt"), "not an image"),
    ("undecodable", bad(image="folder"), "is not a file"),
    ("undecodable", bad(image="pipe"), "is not a file"),
    ("undecodable", bad(implausibility="note.txt"), "not an image"),
    ("word/label mismatch", bad(word_labels=[1, 0]), "2 labels for 3 words"),
    ("word/label mismatch", annotated(word_labels=[1, 0, 2]), "annotators[1].word_labels are [1, 0, 2], expected 0"),
    ("bad score", bad(scores={"overall": 3}), "overall is 3, expected a number in [0, 1]; 1..5 belongs into"),
    ("bad score", bad(scores={"overall": float("nan")}), "overall is nan"),
    ("bad score", bad(scores={"overall": "good"}), "overall is 'good'"),
    ("bad score", annotated(scores={"overall": 6}), "annotators[1]: overall is 6, expected an integer 1..5"),
    ("bad score", annotated(scores={"overall": 2.5}), "overall is 2.5"),
    ("bad score", annotated(scores={"overall": True}), "overall is True"),
    ("no label", bad(scores={}), "say anything"),
    ("no label", bad(scores=None, annotators=[{}, {"points_implausible": None}]), "say anything"),
    ("no label", bad(scores={"overal": 0.5}), "not known here: scores.overal"),
    ("malformed", bad(split="val"), "split 'val', expected train, dev, test"),
    ("malformed", bad(prompt=7), "prompt is 7, expected text"),
    ("malformed", bad(prompt="half \ud83d"), "half of a character"),
    ("malformed", bad(image="a\0b"), "zero byte"),
    ("malformed", bad(implausibility="a\0b"), "zero byte"),
    ("malformed", bad(annotators={}), "annotators is {}, expected a list"),
    ("malformed", annotated(points_implausible=[[1]]), "annotators[1].points_implausible: [1], expected [x, y]"),
    ("malformed", annotated(points_implausible=[[1, float("inf")]]), "inf"),
    ("malformed", annotated(points_implausible=[[1, 10**400]]), "expected [x, y]"),
    ("malformed", annotated(points_misaligned="none"), "is 'none', expected a list"),
    ("malformed", bad(annotators=[{"scores": {"overall": 3}}]), "overall: both annotators and the line itself"),
    ("malformed", b'{"image": "ok.png", "prompt"', "not JSON: Expecting ':' delimiter at character 29"),
    ("malformed", b'{"prompt": "\xff"}', "not JSON"),
    ("malformed", b"[1, 2]", "expected an object in braces, found a list"),
    ("malformed", b"[" * 100_000, "not JSON"),
    ("outside the folder", bad(image="../secret.png"), "leads out of --images"),
    ("outside the folder", bad(image="deep/../../secret.png"), "leads out of --images"),
    ("outside the folder", bad(image="link.png"), "leads out of --images"),
    ("outside the folder", bad(image="linked/secret.png"), "leads out of --images"),
    ("outside the folder", bad(misalignment="../secret.png"), "leads out of --images"),
    ("outside the folder", {"uid": "../secret", **GOOD}, "leads out of --images"),
]


@pytest.fixture
def traps(tmp_path):
    """A folder with every kind of picture that must not be stored, and beside it one that must not be read."""
    pictures = tmp_path / "pictures"
    png = picture(pictures / "ok.png").read_bytes()
    (pictures / "cut.png").write_bytes(png[: len(png) // 2])
    head = b"IHDR" + struct.pack(">IIBBBBB", 9000, 8000, 8, 2, 0, 0, 0)  # says 72 megapixels
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, b"IDAT")]
    (pictures / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    (pictures / "note.txt").write_text("not a picture")
    (pictures / "folder").mkdir()
    os.mkfifo(pictures / "pipe")
    secret = picture(tmp_path / "secret.png")
    (pictures / "link.png").symlink_to(secret)
    (pictures / "linked").symlink_to(tmp_path)
    (pictures / "inside.png").symlink_to("ok.png")
    return tmp_path


def test_every_line_that_cannot_be_used_is_counted_with_its_reason(traps):
    absolute = bad(image=str(traps / "pictures" / "ok.png"))
    cases = [*REFUSED, ("outside the folder", absolute, "is absolute")]
    lines = [{"image": "ok.png", **GOOD}, b"", {"image": "inside.png", **GOOD}]
    start = len(lines) + 1
    lines += [line if isinstance(line, bytes) else {**line} for _, line, _ in cases]
    for number, line in enumerate(lines[3:]):
        if isinstance(line, dict) and str(line.get("uid", "")).startswith("bad"):
            line["uid"] += f" {number}"
    lines.append({"image": "ok.png", **GOOD})
    summary, records = run(traps, lines)
    assert sorted(records) == ["inside.png", "ok.png"]
    reasons = {one["line"]: one for one in refused(traps / "out")}
    assert set(reasons) == set(range(start, len(lines) + 1))
    for number, (kind, _, reason) in enumerate(cases, start):
        assert (reasons[number]["kind"], reason in reasons[number]["reason"]) == (kind, True), reasons[number]
    assert reasons[len(lines)]["kind"] == "duplicates" and "line 1 has the same" in reasons[len(lines)]["reason"]
    refused_kinds = [kind for kind, *_ in cases] + ["duplicates"]
    assert [summary.total(kind) for kind in summary.refusals] == [refused_kinds.count(k) for k in summary.refusals]
    assert summary.total("records") == len(lines) - 1 == summary.total("joined") + len(refused_kinds)


@pytest.fixture
def three(tmp_path):
    return write_three(tmp_path)


def test_clear_errors_and_nothing_is_left_behind(three, tmp_path):
    annotations, images, out = three
    options = {"progress": False}

    def fails(match, annotations=annotations, images=images, **changes):
        with pytest.raises(DatasetError, match=match):
            prepare(annotations, images, out, **{**options, **changes})

    fails("absent.jsonl does not exist; expected a JSONL file", annotations=tmp_path / "absent.jsonl")
    fails("is a folder; expected a JSONL file", annotations=images)
    fails("is a file; expected the folder that the paths start from", images=annotations)
    fails("--map-size 0: expected 1..4096", map_size=0)
    fails("--test 1.5: expected a share", test=1.5)
    fails("no such file; expected a SentencePiece", tokenizer=tmp_path / "absent")
    annotations.write_bytes(b"")
    fails("is empty; expected a line per picture")
    annotations.write_text("\n\n")
    fails("no line can be trained on: 0 of 0 were refused")
    annotations.write_text(json.dumps([{"image": "a.png", **GOOD}], indent=1))
    fails(r"(?s)9 of 9 were refused. First reasons:\n  line 1: not JSON.*one object per line")
    annotations.write_text(json.dumps({"image": "absent.png", **GOOD}) + "\nnonsense\n")
    fails(r"(?s)2 of 2 were refused.*line 1: no file 'absent.png'.*line 2: not JSON", dev=0, test=0)
    annotations.write_text(json.dumps({"image": "a.png", **GOOD, "split": "dev"}))
    fails("0 of 1 were refused, 1 are in dev; give more prompts, or smaller shares with --dev and --test")
    assert sorted(os.listdir(tmp_path)) == ["feedback.jsonl", "pictures"]


def test_an_older_dataset_stays_when_a_new_one_cannot_be_made(three):
    annotations, images, out = three
    prepare(*three, dev=0, test=0, progress=False)
    before = contents(out)
    annotations.write_text(json.dumps({"image": "absent.png", **GOOD}))
    with pytest.raises(DatasetError, match="no line can be trained on"):
        prepare(*three, dev=0, test=0, progress=False)
    assert contents(out) == before


def test_a_click_on_a_picture_that_xmp_turns_is_not_lost(tmp_path):
    xmp = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    picture(tmp_path / "pictures/p.png", 60, 40, pnginfo=info)
    picture(tmp_path / "pictures/p.jpg", 60, 40, xmp=xmp.encode())
    clicks = {"annotators": [{"points_implausible": [[20, 55]]}]}  # upright it is 40 wide and 60 high
    lines = [{"image": name, "prompt": name, **clicks} for name in ("p.png", "p.jpg")]
    summary, stored = run(tmp_path, lines)
    assert summary.total("joined") == 2 and summary.total("points outside the picture") == 0
    for record in stored.values():
        assert load_rgb(record.image).shape == (60, 40, 3)
        assert grey(record.implausibility).shape == (60, 40) and grey(record.implausibility)[55, 20] == 255


def test_a_map_whose_values_are_unclear_and_a_picture_too_long_for_a_jpeg(tmp_path):
    picture(tmp_path / "pictures/p.png")
    Image.new("L", (70_000, 10), 128).save(tmp_path / "pictures/wide.png")
    Image.fromarray(np.full((40, 60), 255, np.uint16)).save(tmp_path / "pictures/m.png")
    summary, stored = run(tmp_path, [
        {"image": "p.png", "prompt": "a", "implausibility": "m.png", "uid": "map"},
        {**GOOD, "image": "wide.png", "uid": "wide"},
        {**GOOD, "image": "p.png", "uid": "p"},
    ])  # fmt: skip
    assert stored.keys() == {"wide", "p"} and check_header(stored["wide"].image) == ("PNG", 70_000, 10)
    assert summary.total("undecodable") == 1
    assert "m.png: 16 or 32 bits per pixel, but no value above 255" in (tmp_path / "out/refused.jsonl").read_text()


def test_one_picture_under_two_names_is_one(tmp_path):
    """./p.png is p.png: one record and a duplicate; and a prompt and its other Unicode form are in one split."""
    picture(tmp_path / "pictures" / "p.png")
    picture(tmp_path / "pictures" / "sub" / "q.png")
    (tmp_path / "pictures" / "link.png").symlink_to("p.png")
    names = ("p.png", "./p.png", "sub/../p.png", "sub//q.png")
    summary, by_uid = run(tmp_path, [{"image": name, **GOOD} for name in names])
    assert list(by_uid) == ["p.png", "sub/q.png"] and summary.splits["train"]["duplicates"] == 2
    picture(tmp_path / "pictures" / "cafe\u0301.png")
    _, by_uid = run(tmp_path, [{"image": name, **GOOD} for name in ("caf\u00e9.png", "cafe\u0301.png")])
    assert list(by_uid) == ["caf\u00e9.png"]
    lines = [
        {"image": "p.png", "uid": "one", **GOOD, "split": "train"},
        {"image": "./link.png", "uid": "two", **GOOD, "prompt": "other", "split": "test"},
        {"image": "sub/q.png", **GOOD, "prompt": "third"},
    ]
    summary, _ = run(tmp_path, lines)
    assert summary.pictures_in_two == 1
