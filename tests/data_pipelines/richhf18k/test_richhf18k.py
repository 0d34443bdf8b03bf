"""`rahf prepare richhf18k`: joining labels, pictures and captions; what is refused, and why."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.richhf18k import join, tfrecord
from data_pipelines.richhf18k.prepare import prepare
from rahf import text
from tests.helpers.richhf18k_maker import (
    CAPTION,
    contents,
    encode,
    example,
    grey_map,
    kinds,
    make_small,
    photo,
    refused,
    row,
    write_labels,
    write_shard,
)


@pytest.fixture
def small(tmp_path):
    return make_small(tmp_path)


def test_joins_both_sides_of_the_rows(small, capsys):
    labels, images, out = small
    summary = prepare(labels, images, out)
    assert store.splits(out) == {"train": 5, "dev": 2, "test": 2}
    assert summary.share == 1 and refused(out) == []
    record = store.open_split(out, "train")[3]
    assert (record.uid, record.prompt, record.image) == ("a3", CAPTION, photo("a3"))
    assert record.words == ("a", "red", "cat", "left", "of", "(the)", "dog")
    assert record.word_labels == (1, 0, 1, 1, 1, 1, 1)
    np.testing.assert_array_equal(record.scores, np.float32([0.75, 0.5, 0.25, 1.0]))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(record.implausibility))), grey_map())
    assert [r.uid for r in store.open_split(out, "train")] == [f"a{i}" for i in range(5)]
    assert text.load_tokenizer(store.tokenizer_path(out)).encode("a red cat")
    assert not out.with_name("out.partial").exists()
    printed = capsys.readouterr().out
    assert "word/label mismatch" in printed and "used 9 of 9 records (100.0%)" in printed
    assert "warning" not in printed


def test_a_finished_run_is_not_done_again(small, monkeypatch):
    labels, images, out = small
    first = prepare(labels, images, out, progress=False)
    before = contents(out)
    monkeypatch.setattr(join, "extract", None)  # a second reading would fail
    assert prepare(labels, images, out, progress=False) == first
    assert contents(out) == before
    monkeypatch.undo()
    tfrecord.write(labels / "test.tfrecord", [example("c0")])
    assert prepare(labels, images, out, progress=False).total("records") == 8


def test_what_is_refused_and_why(tmp_path):
    good = example("ok")
    damaged = example("crc")
    labels = write_labels(
        tmp_path / "labels",
        train=[
            good,
            example("absent"),
            example("mismatch", prompt_misalignment_label=[b"1 1"]),
            example("nopicture"),
            example("halfpicture"),
            example("badmap", artifact_map=[b"nothing"]),
            damaged,
            example("noname", filename=None),
            example("high", overall_score=[1.5]),
            example("twice"),
            example("twice"),
            example("partial", overall_score=None, artifact_map=None, prompt_misalignment_label=None),
            example("silent"),
            example("shared"),
        ],
        test=[example("shared")],
    )
    file = labels / "train.tfrecord"
    data = bytearray(file.read_bytes())
    data[data.index(b"train/crc.jpg")] ^= 1
    file.write_bytes(data)
    uids = ["ok", "mismatch", "badmap", "crc", "high", "twice", "partial", "shared"]
    rows = [row(uid) for uid in uids]
    rows += [
        ("nopicture", None, "x", photo("x"), CAPTION),
        ("y", photo("y"), "halfpicture", photo("h")[:300], CAPTION),
    ]
    rows += [row("silent", caption=None)]
    write_shard(tmp_path / "pick.parquet", rows)
    out = tmp_path / "out"
    summary = prepare(labels, [tmp_path / "pick.parquet"], out, progress=False)
    assert kinds(summary) == {
        "records": 14,
        "joined": 3,
        "missing image": 1,
        "word/label mismatch": 1,
        "undecodable": 3,
        "CRC error or cut off": 1,
        "missing field": 1,
        "bad score": 1,
        "duplicates": 2,
        "missing caption": 1,
        "partial labels": 1,
    }
    assert kinds(summary, "test") == {"records": 1, "joined": 1}  # the test split keeps the shared picture
    assert summary.share == 4 / 15
    listed = {(line["record"], line["uid"], line["kind"]) for line in refused(out)}
    assert listed == {
        (1, "absent", "missing image"),
        (2, "mismatch", "word/label mismatch"),
        (3, "nopicture", "undecodable"),
        (4, "halfpicture", "undecodable"),
        (5, "badmap", "undecodable"),
        (6, None, "CRC error or cut off"),
        (7, None, "missing field"),
        (8, "high", "bad score"),
        (10, "twice", "duplicates"),
        (12, "silent", "missing caption"),
        (13, "shared", "duplicates"),
    }
    reasons = {line["record"]: line["reason"] for line in refused(out)}
    assert "7 words but 2 labels" in reasons[2] and "byte" in reasons[6] and "test.tfrecord" in reasons[13]
    partial = store.open_split(out, "train")[2]
    assert partial.uid == "partial" and partial.word_labels is None and partial.implausibility is None
    assert np.isnan(partial.scores).tolist() == [False, False, False, True]


def test_a_damaged_length_ends_the_file_and_the_rest_goes_on(small, capsys):
    labels, images, out = small
    file = labels / "train.tfrecord"
    size = file.stat().st_size // 5
    data = bytearray(file.read_bytes())
    data[2 * size + 9] ^= 1
    file.write_bytes(data)
    summary = prepare(labels, images, out)
    assert store.splits(out) == {"train": 2, "dev": 2, "test": 2}
    assert kinds(summary) == {"records": 3, "joined": 2, "CRC error or cut off": 1}
    assert "warning: train.tfrecord: CRC error in the length of record 2" in capsys.readouterr().out


def test_pictures_that_occur_twice(tmp_path):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b"), example("c")])
    broken = ("c", photo("c")[:200], "x", photo("x"), "wrong caption")
    write_shard(tmp_path / "0.parquet", [row("a", "b"), broken, ("a", photo("z"), "a", photo("z"), "later")])
    write_shard(tmp_path / "1.parquet", [("x", photo("x"), "b", photo("z"), "later"), row("c")])
    shards = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    summary = prepare(labels, shards, tmp_path / "out", progress=False)
    assert kinds(summary) == {"records": 3, "joined": 3, "picture found again": 2}
    for record in store.open_split(tmp_path / "out", "train"):
        assert (record.prompt, record.image) == (CAPTION, photo(record.uid))  # the first that decodes


def test_jpeg_maps_give_a_warning(small, capsys):
    labels, images, out = small
    ringing = encode(grey_map(), "JPEG", quality=40)
    write_labels(labels, train=[example(f"a{i}", artifact_map=[ringing]) for i in range(5)])
    summary = prepare(labels, images, out)
    assert 0 < summary.moved_share < 0.5
    assert f"warning: {summary.moved_share:.3%} of the map pixels" in capsys.readouterr().out
    stored = np.asarray(Image.open(io.BytesIO(store.open_split(out, "train")[0].implausibility)))
    assert set(np.unique(stored)) <= {0, 85, 170, 255}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "option"])
def test_folder_of_images_with_captions(tmp_path, kind):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b"), example("c"), example("d")])
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(photo("a"))
    (folder / "train" / "b.png").write_bytes(photo("b", "PNG"))
    (folder / "train" / "c.webp").write_bytes(photo("c", "WEBP"))
    (folder / "train" / "a.png").write_bytes(photo("a", "PNG"))  # again
    (folder / "notes.txt").write_text("not a picture")
    pairs = [(uid, CAPTION) for uid in ("a", "b", "c", "unused")]
    option = None
    if kind in ("jsonl", "option"):
        option = tmp_path / "elsewhere.jsonl" if kind == "option" else None
        lines = [json.dumps({"uid": uid, "caption": caption}) + "\n" for uid, caption in pairs]
        (option or folder / "captions.jsonl").write_text("".join(lines))
    elif kind == "parquet":
        table = {"filename": [f"train/{uid}.jpg" for uid, _ in pairs], "prompt": [CAPTION] * 4}
        pq.write_table(pa.table(table), folder / "captions.parquet")
    else:
        with open(folder / f"captions.{kind}", "w", newline="") as file:
            delimiter = "\t" if kind == "tsv" else ","
            csv.writer(file, delimiter=delimiter).writerows([("uid", "caption"), *pairs])
    summary = prepare(labels, folder, tmp_path / "out", captions=option, progress=False)
    assert kinds(summary) == {"records": 4, "joined": 3, "missing image": 1, "picture found again": 1}
    records = {record.uid: record for record in store.open_split(tmp_path / "out", "train")}
    assert {record.prompt for record in records.values()} == {CAPTION}
    assert records["a"].image == photo("a") and records["c"].image == photo("c", "WEBP")


def test_shards_folders_and_mirrors_together(tmp_path):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b"), example("c")])
    write_shard(tmp_path / "shard.parquet", [row("x", "a")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").write_bytes(photo("b"))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"uid": "b", "caption": CAPTION}))
    mirror = {
        "filename": ["train/c.jpg"],
        "image": [{"bytes": photo("c"), "path": None}],
        "caption": [CAPTION],
    }
    pq.write_table(pa.table(mirror), tmp_path / "mirror.parquet")
    places = [tmp_path / "images", tmp_path / "mirror.parquet", tmp_path / "shard.parquet"]
    prepare(labels, places, tmp_path / "out", captions=tmp_path / "captions.jsonl", progress=False)
    records = {record.uid: record.image for record in store.open_split(tmp_path / "out", "train")}
    assert records == {uid: photo(uid) for uid in "abc"}


def test_odd_pictures_become_upright_rgb_jpeg(tmp_path):
    labels = write_labels(tmp_path / "labels", train=[example("grey"), example("turned"), example("alpha")])
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    clear = np.full((16, 16, 4), 0, np.uint8)
    pictures = {
        "grey": encode(wide[..., 0]),
        "turned": encode(wide, "JPEG", exif=exif, quality=95),
        "alpha": encode(clear),
    }
    rows = [(uid, data, "x", photo("x"), CAPTION) for uid, data in pictures.items()]
    write_shard(tmp_path / "s.parquet", rows)
    prepare(labels, [tmp_path / "s.parquet"], tmp_path / "out", progress=False)
    stored = {}
    for record in store.open_split(tmp_path / "out", "train"):
        image = Image.open(io.BytesIO(record.image))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        stored[record.uid] = np.asarray(image)
    np.testing.assert_allclose(stored["grey"], wide, atol=4)
    assert stored["turned"].shape == (32, 16, 3)
    assert stored["turned"][:12].min() > 240 and stored["turned"][20:].max() < 15  # white is above now
    assert stored["alpha"].min() == 255  # over white


def test_an_unreadable_shard_is_reported_and_the_others_are_used(small, capsys):
    labels, images, out = small
    broken = images[0] / "1.parquet"
    broken.write_bytes(broken.read_bytes()[:-300])
    summary = prepare(labels, images, out)
    assert kinds(summary) == {"records": 5, "joined": 2, "missing image": 3}
    assert "1.parquet cannot be read" in summary.unreadable[0]
    assert "1.parquet cannot be read" in capsys.readouterr().out
    assert refused(out)[0]["kind"] == "unreadable shard"


def test_pictures_are_read_only_where_a_wanted_one_is(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "s.parquet", [row(f"u{i}", f"v{i}") for i in range(8)], row_group_size=2)
    asked = []
    original = pq.ParquetFile.iter_batches

    def spy(self, *args, **kwargs):
        asked.append((kwargs["row_groups"], kwargs["columns"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    result = join.extract(join.Unit(str(path), ()), {"u2", "v7", "u4"}, {"u4"}, lambda uid, data: None)
    assert result.captions == {"u2": CAPTION, "v7": CAPTION}
    assert result.again == {"u4": 1}  # an earlier unit had it, so its picture is not read
    assert [ask for ask in asked if ask[1][0].startswith("jpg")] == [([1], ["jpg_0"]), ([3], ["jpg_1"])]


def test_a_shard_is_never_whole_in_memory(tmp_path):
    padding = np.random.default_rng(0).bytes(100_000)
    rows = [(f"u{i}", photo(f"u{i}") + padding, "x", photo("x"), CAPTION) for i in range(200)]
    path = write_shard(tmp_path / "s.parquet", rows, row_group_size=200, write_batch_size=4, compression="none")
    assert path.stat().st_size > 20_000_000
    before, most = pa.total_allocated_bytes(), []
    wanted = {f"u{i}" for i in range(200)}
    result = join.extract(join.Unit(str(path), ()), wanted, set(), lambda *_: most.append(pa.total_allocated_bytes()))
    assert len(result.captions) == 200
    assert max(most) - before < 8_000_000
