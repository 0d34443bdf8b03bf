"""One bad item never ends `rahf prepare richhf18k`: rows of captions, cells of shards; and data stay data."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.richhf18k.prepare import prepare
from rahf.core.errors import DatasetError, DiskFull
from tests.helpers.richhf18k_maker import CAPTION, example, make_small, photo, refused, write_labels


def joined_with(tmp_path, name, content: bytes):
    """The caption of a folder of pictures a and b whose captions file has this content; and what is reported."""
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b")])
    (tmp_path / "images").mkdir()
    for uid in "ab":
        (tmp_path / "images" / f"{uid}.jpg").write_bytes(photo(uid))
    (tmp_path / "images" / name).write_bytes(content)
    return prepare(labels, [tmp_path / "images"], tmp_path / "out", progress=False)


CSV_LINE = f'a,"{CAPTION}"\n'.encode()
GOOD_LINE = json.dumps({"uid": "a", "caption": CAPTION}).encode() + b"\n"


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("captions.jsonl", b"{\n" + GOOD_LINE, "line 1: not JSON"),
        ("captions.jsonl", b"[" * 100_000 + b"\n" + GOOD_LINE, "line 1: not JSON (nested too deeply"),
        ("captions.jsonl", b'{"uid": "b", "caption": "caf\xe9"}\n' + GOOD_LINE, "line 1: not JSON ('utf-8' codec"),
        ("captions.jsonl", b'{"uid": "b", "caption": 1' + b"0" * 5000 + b"}\n" + GOOD_LINE, "line 1: not JSON"),
        ("captions.jsonl", b'{"uid": "b", "caption": {"en": "x"}}\n' + GOOD_LINE, "line 1: caption is {'en': 'x'}"),
        ("captions.jsonl", b'["b", "x"]\n' + GOOD_LINE, "line 1: not JSON (expected an object"),
        ("captions.jsonl", b'{"uid": "b"}\n' + GOOD_LINE, "line 1: expected a column 'uid' and a column 'caption'"),
        (
            "captions.csv",
            b'uid,caption\nb,"' + b"x " * 70_000 + b'"\na,"' + CAPTION.encode() + b'"\n',
            "line 2: caption has",
        ),
        ("captions.csv", b'uid,caption\nb,caf\xe9\na,"' + CAPTION.encode() + b'"\n', "line 2: caption is not UTF-8"),
        ("captions.tsv", b"uid\tcaption\nb\tcaf\xe9\na\t" + CAPTION.encode() + b"\n", "line 2: caption is not UTF-8"),
    ],
)
def test_a_bad_caption_costs_one_picture(tmp_path, name, content, problem):
    summary = joined_with(tmp_path, name, content)
    assert summary.splits["train"]["joined"] == 1 and summary.splits["train"]["missing caption"] == 1
    (reported,) = summary.unreadable
    assert f"{name}, {problem}" in reported
    assert any(problem in line["reason"] for line in refused(tmp_path / "out"))


def test_a_captions_file_of_another_encoding_is_named(tmp_path):
    with pytest.raises(DatasetError, match="captions.csv: is UTF-16, not UTF-8; save it as UTF-8"):
        joined_with(tmp_path, "captions.csv", "uid,caption\na,x\n".encode("utf-16"))


@pytest.mark.parametrize("value, kind", [("/etc/hostname", "str"), (0, "int")])
def test_a_path_in_a_column_of_pictures_is_not_opened(tmp_path, value, kind):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b")])
    good = {"filename": ["b.jpg"], "image": [photo("b")], "caption": [CAPTION]}
    pq.write_table(pa.table(good), tmp_path / "good.parquet")
    pq.write_table(pa.table({"filename": ["a.jpg"], "image": [value], "caption": [CAPTION]}), tmp_path / "bad.parquet")
    summary = prepare(labels, [tmp_path / "bad.parquet", tmp_path / "good.parquet"], tmp_path / "out", progress=False)
    assert summary.splits["train"]["joined"] == 1 and summary.splits["train"]["undecodable"] == 1
    reason = [line["reason"] for line in refused(tmp_path / "out")]
    assert reason == [
        f"picture a of {tmp_path}/bad.parquet: column image holds {kind}, expected bytes; a path is not followed"
    ]


def test_text_that_is_not_utf_8_costs_one_row_of_a_shard(tmp_path):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b")])
    captions = pa.array([b"caf\xe9", CAPTION.encode()], pa.binary()).view(pa.string())
    table = {"filename": ["a.jpg", "b.jpg"], "image": [photo("a"), photo("b")], "caption": captions}
    pq.write_table(pa.table(table), tmp_path / "s.parquet")
    summary = prepare(labels, [tmp_path / "s.parquet"], tmp_path / "out", progress=False)
    assert summary.splits["train"]["joined"] == 1 and summary.splits["train"]["missing caption"] == 1


def test_a_full_disk_while_pictures_are_staged(tmp_path, monkeypatch):
    labels, images, out = make_small(tmp_path)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DiskFull, match="out.partial: the disk is full"):
        prepare(labels, images, out, progress=False)
