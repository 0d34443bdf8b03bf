"""RichHF-18K with its pictures inside: the same records as of the release, every form of column, bad rows."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.prepare.dataset_source import open_source
from data_pipelines.richhf18k import prepare as release
from data_pipelines.richhf18k.with_pictures import prepare
from rahf.cli import main as cli
from rahf.core.errors import DatasetError
from tests.helpers import richhf18k_maker as maker
from tests.helpers.shards_maker import nested, write

MAP = pa.list_(pa.list_(pa.float32()))


def columns(*uids, split="train", **changes):
    """As `richhf18k_maker.example` has them."""
    level = maker.grey_map()
    one = {
        "filename": [f"{split}/{uid}.jpg" for uid in uids],
        "image": [{"bytes": maker.photo(uid), "path": None} for uid in uids],
        "caption": [maker.CAPTION] * len(uids),
        "artifact_score": [0.75] * len(uids),
        "misalignment_score": [0.5] * len(uids),
        "aesthetics_score": [0.25] * len(uids),
        "overall_score": [1.0] * len(uids),
        "artifact_map": [maker.encode(level)] * len(uids),
        "misalignment_map": [maker.encode(maker.grey_map(0))] * len(uids),
        "prompt_misalignment_label": [maker.WORD_LABELS] * len(uids),
    }
    return {name: values for name, values in {**one, **changes}.items() if values is not None}


def run(folder, out, **shards):
    for name, table in shards.items():
        write(folder / f"data/{name}-00000-of-00001.parquet", table)
    return prepare(open_source(None, folder), out, progress=False)


def read(out, split="train"):
    return list(store.open_split(out, split))


def assert_same(one, other, maps=True):
    for name in one._fields:
        if name in ("implausibility", "misalignment") and not maps:
            a, b = (np.asarray(Image.open(io.BytesIO(getattr(r, name)))) for r in (one, other))
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_equal(getattr(one, name), getattr(other, name))


def test_the_same_records_as_of_the_release(tmp_path):
    labels, images, out = maker.make_small(tmp_path)
    release.prepare(labels, images, out, progress=False)
    # "validation" is what the hub calls "dev".
    shards = {
        "train": columns(*(f"a{i}" for i in range(5))),
        "validation": columns("b0", "b1"),
        "test": columns("c0", "c1"),
    }
    summary = run(tmp_path / "mirror", tmp_path / "two", **shards)
    for split in ("train", "dev", "test"):
        assert len(read(out, split)) == len(read(tmp_path / "two", split)) == summary.splits[split]["joined"]
        for one, other in zip(read(out, split), read(tmp_path / "two", split), strict=True):
            assert_same(one, other)
    assert (out / "metadata.json").read_bytes() == (tmp_path / "two/metadata.json").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"image": [maker.photo("a0")]},
        {"caption": None, "prompt": [maker.CAPTION]},
        {"artifact_map": [{"bytes": maker.encode(maker.grey_map()), "path": "map.png"}]},
        {"artifact_map": nested([maker.grey_map() / 255], MAP), "misalignment_map": nested([np.zeros((32, 32))], MAP)},
        {"artifact_map": nested([maker.grey_map()], pa.list_(pa.list_(pa.uint8())))},
        {"prompt_misalignment_label": [[int(label) for label in maker.WORD_LABELS.split()]]},
        {"filename": None, "image": [{"bytes": maker.photo("a0"), "path": "a0.jpg"}]},
    ],
    ids=["plain bytes", "prompt", "struct", "0..1", "0..255", "list of labels", "path"],
)
def test_every_form_of_a_column(tmp_path, changes):
    run(tmp_path / "one", tmp_path / "a", train=columns("a0"))
    run(tmp_path / "two", tmp_path / "b", train=columns("a0", **changes))
    assert_same(*read(tmp_path / "a"), *read(tmp_path / "b"), maps=False)


def test_the_largest_value_of_the_shard_decides_not_that_of_a_map(tmp_path):
    """A map whose largest value is 1 is almost black in a shard of 0..255, and white in one of 0..1."""
    faint = np.zeros((4, 4), np.float32)
    faint[0] = 1
    run(tmp_path / "one", tmp_path / "a", train=columns("a0", "a1", artifact_map=nested([faint, 255 * faint], MAP)))
    run(tmp_path / "two", tmp_path / "b", train=columns("a0", "a1", artifact_map=nested([faint, faint / 3], MAP)))
    levels = [[Image.open(io.BytesIO(r.implausibility)).getextrema()[1] for r in read(tmp_path / out)] for out in "ab"]
    assert levels == [[0, 255], [255, 85]]


def test_a_score_that_is_0_or_null_everywhere_is_missing(tmp_path, capsys):
    changed = columns("a0", "a1", overall_score=[0.0, None], aesthetics_score=[0.0, 0.5])
    write(tmp_path / "in/train-00000-of-00001.parquet", changed)
    assert cli.main(["prepare", "richhf18k", "--folder", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    scores = np.stack([record.scores for record in read(tmp_path / "out")])
    assert np.isnan(scores[:, 3]).all()
    np.testing.assert_array_equal(scores[:, 2], [0.0, 0.5])
    assert "missing label: overall of train: overall_score is 0 or null in every row" in capsys.readouterr().out


def test_rows_that_cannot_be_used(tmp_path):
    labels = ["1 0", *[maker.WORD_LABELS] * 5, None]
    table = columns(
        *(f"a{i}" for i in range(7)),
        prompt_misalignment_label=labels,
        artifact_score=[0.5, 1.5, float("nan"), 0.5, 0.5, 0.5, None],
        artifact_map=[maker.encode(maker.grey_map())] * 3 + [b"no map", *[maker.encode(maker.grey_map())] * 3],
        image=[{"bytes": maker.photo(f"a{i}"), "path": None} for i in range(5)] + [{"bytes": b"x", "path": None}]
        + [{"bytes": maker.photo("a6"), "path": None}],
        caption=[*[maker.CAPTION] * 4, "", *[maker.CAPTION] * 2],
    )  # fmt: skip
    summary = run(tmp_path / "in", tmp_path / "out", train=table, test=columns("a6", split="test"))
    expected = {"records": 7, "word/label mismatch": 1, "bad score": 2, "undecodable": 2, "missing caption": 1,
                "duplicates": 1}  # fmt: skip
    assert maker.kinds(summary) == expected
    assert summary.splits["test"]["joined"] == 1  # what the test split has is not trained on
    assert [line["uid"] for line in maker.refused(tmp_path / "out")] == [f"a{i}" for i in range(7)]


def test_what_is_not_such_a_copy(tmp_path, capsys):
    write(tmp_path / "in/0001.parquet", columns("a0"))
    with pytest.raises(DatasetError, match="no split is named in 0001.parquet"):
        prepare(open_source(None, tmp_path / "in"), tmp_path / "out", progress=False)
    maker.write_shard(tmp_path / "pick/train-0.parquet", [maker.row("a0")])
    with pytest.raises(DatasetError, match="lacks image.*image_0_uid.*Pick-a-Pic v1, which"):
        prepare(open_source(None, tmp_path / "pick"), tmp_path / "out", progress=False)
    out = ["--out", str(tmp_path / "out")]
    for wrong in ([], ["--hub", "a/b", "--folder", "c"], ["--labels", "a"], ["--folder", "c", "--images", "d"]):
        assert cli.main(["prepare", "richhf18k", *wrong, *out]) != 0
        assert "--hub or --folder" in capsys.readouterr().err or wrong[:1] == ["--hub"]
