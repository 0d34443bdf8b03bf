"""`rahf prepare richhf18k` killed, restarted, and given the wrong things."""

import os
import pathlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import store
from data_pipelines.richhf18k import join
from data_pipelines.richhf18k.prepare import prepare
from rahf.core.errors import DatasetError
from tests.helpers.richhf18k_maker import (
    contents,
    example,
    kinds,
    make_small,
    photo,
    row,
    write_labels,
    write_shard,
)


@pytest.fixture
def small(tmp_path):
    return make_small(tmp_path)


KILLER = """
import os, signal, sys
from data_pipelines.richhf18k import assemble, join, prepare
module, name, after = sys.argv[4], sys.argv[5], int(sys.argv[6])
owner = assemble.Assembly if module == "assemble" else join
original, calls = getattr(owner, name), []
def stop(*args):
    calls.append(1)
    if len(calls) > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
setattr(owner, name, stop)
prepare.prepare(sys.argv[1], [sys.argv[2]], sys.argv[3], progress=False)
"""


def run_and_kill(labels, images, out, *where):
    command = [sys.executable, "-c", KILLER, *map(str, (labels, images[0], out, *where))]
    root = pathlib.Path(__file__).resolve().parents[3]
    assert subprocess.run(command, cwd=root).returncode == -9
    assert not out.exists()


def test_killed_twice_it_goes_on_and_ends_with_the_same_bytes(small, tmp_path, monkeypatch):
    labels, images, out = small
    prepare(labels, images, tmp_path / "straight", progress=False)
    expected = contents(tmp_path / "straight")

    run_and_kill(labels, images, out, "join", "storable", 5)  # in the second of three shards
    done = os.listdir(tmp_path / "out.partial" / "units")
    assert done == ["000000.json"]
    run_and_kill(labels, images, out, "assemble", "_join", 6)  # while the second split is written
    read = []
    monkeypatch.setattr(join, "extract", lambda unit, *args: read.append(unit))
    summary = prepare(labels, images, out, progress=False)
    assert read == []  # every shard had been read before the second kill
    assert summary.share == 1
    assert contents(out) == expected
    assert sorted(os.listdir(tmp_path)) == ["labels", "out", "pick", "straight"]  # and nothing is left over


def test_an_exception_midway_and_a_second_run_give_the_same_bytes(small, tmp_path, monkeypatch):
    labels, images, out = small
    prepare(labels, images, tmp_path / "straight", progress=False)
    original = join.storable

    def failing(data, what):
        if "a4" in what:
            raise OSError(28, "No space left on device")
        return original(data, what)

    monkeypatch.setattr(join, "storable", failing)
    with pytest.raises(OSError, match="No space left"):
        prepare(labels, images, out, progress=False)
    monkeypatch.undo()
    prepare(labels, images, out, progress=False)
    assert contents(out) == contents(tmp_path / "straight")


def test_a_half_done_run_with_other_inputs_begins_anew(small, tmp_path):
    labels, images, out = small
    run_and_kill(labels, images, out, "join", "storable", 5)
    write_shard(images[0] / "0.parquet", [row("a0", "x")])
    summary = prepare(labels, images, out, progress=False)
    assert kinds(summary) == {"records": 5, "joined": 4, "missing image": 1}
    assert not (tmp_path / "out.partial").exists()


def test_a_stranger_in_the_place_of_the_working_directory(small, tmp_path):
    labels, images, out = small
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("precious")
    with pytest.raises(DatasetError, match="something else.*thesis.tex"):
        prepare(labels, images, out, progress=False)
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


# Wrong input


def test_wrong_directories(small, tmp_path):
    labels, images, out = small
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (tmp_path / "nowhere", images, out, "--labels .*nowhere does not exist"),
        (empty, images, out, "none of train.tfrecord.*directory is empty.*richhf-18k"),
        (labels / "dev.tfrecord", images, out, "is a file"),
        (labels, [tmp_path / "nowhere"], out, "--images .*nowhere does not exist"),
        (labels, [empty], out, "neither parquet shards nor images.*empty"),
        (labels, [labels / "dev.tfrecord"], out, "neither a parquet shard nor a folder"),
        (labels, images, labels, "not a prepared dataset"),
    ]
    for label_folder, paths, target, message in cases:
        with pytest.raises(DatasetError, match=message):
            prepare(label_folder, paths, target, progress=False)
    with pytest.raises(DatasetError, match="--captions .*no such file"):
        prepare(labels, images, out, captions=tmp_path / "c.jsonl", progress=False)
    with pytest.raises(DatasetError, match="--tokenizer .*no such file"):
        prepare(labels, images, out, tokenizer=tmp_path / "t.model", progress=False)
    with pytest.raises(DatasetError, match="not a SentencePiece model"):
        prepare(labels, images, out, tokenizer=labels / "dev.tfrecord", progress=False)
    assert sorted(os.listdir(tmp_path)) == ["empty", "labels", "pick"]


def test_a_parquet_file_of_another_kind(small, tmp_path):
    labels, _, out = small
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(DatasetError, match="not a Pick-a-Pic shard.*image_0_uid.*found text"):
        prepare(labels, [tmp_path / "other.parquet"], out, progress=False)


@pytest.mark.parametrize("place", ["labels/dev.tfrecord", "pick/1.parquet"])
def test_git_lfs_pointers_stop_the_run_at_once(small, tmp_path, place):
    labels, images, out = small
    (tmp_path / place).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 77\n")
    with pytest.raises(DatasetError, match="Git-LFS pointer.*77 bytes.*git lfs pull"):
        prepare(labels, images, out, progress=False)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "line, message", [("{", "line 2: not JSON"), ('{"id": "a"}', "line 2: expected a column 'uid'")]
)
def test_damaged_captions(tmp_path, line, message):
    labels = write_labels(tmp_path / "labels", train=[example("a")])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(photo("a"))
    (tmp_path / "images" / "captions.jsonl").write_text('{"uid": "z", "caption": "x"}\n' + line)
    with pytest.raises(DatasetError, match=message):
        prepare(labels, [tmp_path / "images"], tmp_path / "out", progress=False)


def test_nothing_joined_says_what_to_check(tmp_path):
    labels = write_labels(tmp_path / "labels", train=[example("a"), example("b")])
    other = write_shard(tmp_path / "other.parquet", [row("x", "y")])
    with pytest.raises(DatasetError, match="labels name 2 pictures .one is a.*Check that --images"):
        prepare(labels, [other], tmp_path / "out", progress=False)
    silent = write_shard(tmp_path / "silent.parquet", [row("a", "b", None)])
    with pytest.raises(DatasetError, match="2 pictures were found.*no caption.*--captions"):
        prepare(labels, [silent], tmp_path / "out", progress=False)
    one_word = write_shard(tmp_path / "word.parquet", [row("a", "b", "cat")])
    with pytest.raises(DatasetError, match="all 2 records were refused.*\n.*1 words but 7 labels"):
        prepare(labels, [one_word], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_empty_label_files(small):
    labels, images, out = small
    (labels / "dev.tfrecord").write_bytes(b"")
    prepare(labels, images, out, progress=False)
    assert store.splits(out) == {"train": 5, "dev": 0, "test": 2}
    with pytest.raises(DatasetError, match="split 'dev' is empty"):
        store.open_split(out, "dev")
    for split in ("train", "test"):
        (labels / f"{split}.tfrecord").write_bytes(b"")
    with pytest.raises(DatasetError, match="no usable record.*empty"):
        prepare(labels, images, out, progress=False)
