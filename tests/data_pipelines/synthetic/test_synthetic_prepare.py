"""`rahf prepare synthetic`: the same bytes however many workers draw; other people's files are left alone."""

import json

import pytest

from data_pipelines import store
from data_pipelines.synthetic.prepare import prepare
from data_pipelines.synthetic.scene import generate, scene
from rahf.text import Tokenizer


def test_prepare_writes_the_same_bytes_with_and_without_workers(tmp_path):
    counts = prepare(tmp_path / "one", train=40, dev=3, test=5, seed=2, size=48, progress=False)
    assert counts == {"train": 40, "dev": 3, "test": 5} == store.splits(tmp_path / "one")
    prepare(tmp_path / "two", train=40, dev=3, test=5, seed=2, size=48, workers=2, progress=False)
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    source = store.open_split(tmp_path / "one", "test")
    expected = list(generate(2, "test", 5, 48))
    assert [source[i].image for i in range(5)] == [one.image for one in expected]
    truth = [json.loads(line) for line in files["truth-test.jsonl"].decode().splitlines()]
    assert [line["uid"] for line in truth] == [one.uid for one in expected]
    for number, line in enumerate(truth):
        assert line["word_labels"] == list(scene(2, "test", number, 48).word_labels)
    assert Tokenizer(files["tokenizer.model"]).encode("two red stars")


def test_prepare_again_does_nothing_and_other_arguments_replace(tmp_path):
    out = tmp_path / "data"
    arguments = {"train": 4, "dev": 0, "test": 2, "size": 48, "progress": False}
    prepare(out, **arguments)
    stamp = out.stat().st_ino
    assert prepare(out, **arguments) == {"train": 4, "test": 2}
    assert out.stat().st_ino == stamp
    shard = next(out.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:100])  # damaged: made again
    prepare(out, **arguments)
    assert len(store.open_split(out, "train")) == 4
    prepare(out, **{**arguments, "seed": 1})
    assert store.open_split(out, "train")[0].uid == "synthetic-1-train-000000"


def test_prepare_leaves_other_peoples_directories_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(store.DatasetError, match="left alone"):
        prepare(tmp_path, train=1, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="at least one scene"):
        prepare(tmp_path / "none", train=0, dev=0, test=0)
