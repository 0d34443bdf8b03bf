"""`rahf prepare rapidata`: labels, splits, bad rows, resuming."""

import json
import os

import numpy as np
import pytest

from data_pipelines import store
from data_pipelines.prepare import from_shards
from data_pipelines.prepare.dataset_source import open_source
from data_pipelines.rapidata import word_scores
from data_pipelines.rapidata.prepare import prepare
from rahf.cli import main as cli
from rahf.core.errors import DatasetError
from tests.helpers.feedback_maker import grey, records
from tests.helpers.richhf18k_maker import contents, kinds, refused
from tests.helpers.shards_maker import heat, photo, rapidata_row, write, write_rapidata

ALL_TRAIN = {"dev": 0, "test": 0}


def run(folder, rows, **options):
    write_rapidata(folder / "shards" / "data" / "train-00000-of-00001.parquet", rows)
    options = {**ALL_TRAIN, "progress": False, **options}
    summary = prepare(open_source(None, folder / "shards"), folder / "out", **options)
    return summary, records(folder / "out")


def test_labels(tmp_path):
    rows = [rapidata_row(0), rapidata_row(1, coherence_heatmap=None), rapidata_row(2, coherence_heatmap=[])]
    rows[2]["word_scores"] = json.dumps([["a", 0.0], ["red", 1.0], ["cat", 0.5], ["sitting", 0], ["2", 0.75]])
    rows.append(rapidata_row(3, coherence_heatmap=[[None] * 16] * 16, alignment_heatmap=np.zeros((16, 16))))
    summary, got = run(tmp_path, rows)
    by_prompt = {record.prompt.split()[-1]: record for record in got.values()}
    record = by_prompt["0"]
    np.testing.assert_allclose(record.scores, [1.0, 0.5, 0.25, np.nan])  # overall was not asked
    assert record.words == ("a", "red", "cat", "sitting", "0")
    assert (record.word_labels, record.word_shares) == ((1,) * 5, (0.75,) * 5)
    np.testing.assert_array_equal(grey(record.implausibility) > 0, heat(0) > 0)
    assert grey(record.implausibility).max() == 128
    assert by_prompt["1"].implausibility is None and by_prompt["2"].implausibility is None
    assert by_prompt["3"].implausibility is None  # nothing but nulls: nobody was asked
    assert not grey(by_prompt["3"].misalignment).any()  # asked, and nothing was found
    assert by_prompt["2"].word_labels == (1, 0, 1, 1, 0)  # a tie is aligned
    np.testing.assert_allclose(by_prompt["2"].word_shares, [1, 0, 0.5, 1, 0.25])
    assert summary.splits["train"]["implausibility"] == 1
    assert "overall: it was not asked" in summary.absent
    sheet = json.loads((tmp_path / "out/datasheet.json").read_text())
    assert sheet["splits"]["train"]["present"]["misalignment"] == 4
    assert sheet["splits"]["train"]["empty_maps"] == {"implausibility": 0, "misalignment": 1}
    assert sheet["splits"]["train"]["score_histograms"]["plausibility"][9] == 4
    np.testing.assert_allclose(sheet["splits"]["train"]["mean_map_value"]["implausibility"], 128 / 255 / 16, rtol=1e-3)


def test_copies_with_other_names_and_unknown_columns(tmp_path, capsys):
    row = rapidata_row(0)
    columns = {"image_name": [row["image"]["bytes"]], "sentence": [row["prompt"]], "coherence_score_norm": [0.3],
               "generated_by": ["flux"]}  # fmt: skip
    write(tmp_path / "in/train-00000-of-00002.parquet", columns)
    assert cli.main(["prepare", "rapidata", "--folder", str(tmp_path / "in"), "--out", str(tmp_path / "out"),
                     "--dev", "0", "--test", "0"]) == 0  # fmt: skip
    (record,) = records(tmp_path / "out").values()
    np.testing.assert_allclose(record.scores, [0.3, np.nan, np.nan, np.nan], rtol=1e-6)
    text = capsys.readouterr().out
    assert "columns that are not read: generated_by (1 shards)" in text
    assert "train-00001-of-00002" in text  # the other shard is not there
    assert "alignment: alignment_score is no column" in text


def test_rows_that_cannot_be_used(tmp_path):
    rows = [
        rapidata_row(0),
        rapidata_row(1, image={"bytes": b"no picture", "path": ""}),
        rapidata_row(2, image=None),
        rapidata_row(3, prompt=" "),
        rapidata_row(4, word_scores="[[cat, 1]]"),
        rapidata_row(5, word_scores='[["cat", NaN]]'),
        rapidata_row(6, word_scores='[["cat", -1]]'),
        rapidata_row(7, coherence_score=0.5),
        rapidata_row(8, coherence_score=float("nan")),
        rapidata_row(9, coherence_heatmap=np.full((16, 16), np.nan)),
        rapidata_row(10, coherence_heatmap=-heat(0)),
        rapidata_row(11, coherence_heatmap=heat(0, (8, 16))),
        rapidata_row(12, image={"bytes": photo(12)[:200], "path": ""}),
        rapidata_row(0),
        rapidata_row(14, coherence_heatmap=heat(0, (8, 8))),
    ]
    summary, got = run(tmp_path, rows)
    assert len(got) == 2
    for record in got.values():  # the one whose map is smaller than the other has both at the picture's size
        assert grey(record.implausibility).shape == grey(record.misalignment).shape == (16, 16)
    expected = {"undecodable": 2, "missing image": 1, "missing prompt": 1, "bad word scores": 3, "bad score": 2,
                "bad map": 2, "map of another shape": 1, "duplicates": 1, "records": 15, "joined": 2,
                "map of another size": 1}  # fmt: skip
    counted = {name: summary.total(name) for name in expected}
    assert counted == expected
    lines = refused(tmp_path / "out")
    assert len(lines) == 13
    assert "8 values, the picture" in next(one["reason"] for one in lines if one["kind"] == "map of another shape")


def test_words_that_the_split_rule_reads_otherwise(tmp_path):
    rows = [
        rapidata_row(0, word_scores=json.dumps([["a", 0], ["black", 0.9], ["red", 0.25], ["cat,", 1], ["sitting", 0]])),
        rapidata_row(1, word_scores=json.dumps([["blue", 1], ["dogs", 1]])),
        rapidata_row(2, word_scores=None),
    ]
    summary, got = run(tmp_path, rows)
    by_prompt = {record.prompt.split()[-1]: record for record in got.values()}
    np.testing.assert_allclose(by_prompt["0"].word_shares, [1, 0.75, 0, 1, 1])  # "0" has no counterpart
    assert by_prompt["1"].word_labels is None and by_prompt["2"].word_labels is None
    assert summary.total("words matched by edit distance") == summary.total("words that do not match the prompt") == 1


def test_scores_above_1_are_weights_of_people():
    parse = word_scores.parse
    one = parse('[["a", 1.5], ["cat", 0.5], ["[No_mistakes]", 2.5]]')
    other = parse('{"a": 4.0, "cat": 0}')
    assert (one.people, other.people) == (4.0, 4.0)
    assert word_scores.people_asked([one, other]) == 4.0
    assert word_scores.soft_words(("a", "cat"), one, 4.0).shares == (0.625, 0.875)
    assert word_scores.people_asked([parse('[["a", 0.2], ["[No_mistakes]", 0.9]]')]) == 1.0


def test_splits_follow_the_prompt_and_interrupted_runs_go_on(tmp_path, monkeypatch):
    rows = [rapidata_row(number) for number in range(8)]
    summary, got = run(tmp_path / "whole", rows, dev=0.3, test=0.3)
    assert set(summary.splits) == {"train", "dev", "test"}
    original, done = from_shards._Run._read_unit, []

    def interrupted(self, number, *args):
        if number == 2:
            raise KeyboardInterrupt
        done.append(number)
        return original(self, number, *args)

    # The same file, so that the plan is the same.
    source = open_source(None, tmp_path / "whole/shards")
    with monkeypatch.context() as patch:
        patch.setattr(from_shards._Run, "_read_unit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", dev=0.3, test=0.3, progress=False)
    assert not (tmp_path / "out").exists()
    again = []
    monkeypatch.setattr(
        from_shards._Run,
        "_read_unit",
        lambda self, number, *args: again.append(number) or original(self, number, *args),
    )
    prepare(source, tmp_path / "out", dev=0.3, test=0.3, progress=False)
    assert (done, again) == ([0, 1], [2, 3])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole/out")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
    again.clear()
    prepare(source, tmp_path / "out", dev=0.3, test=0.3, progress=False)  # unchanged: nothing is read again
    assert not again


def test_shards_of_another_dataset_and_truncated_ones(tmp_path):
    write(tmp_path / "in/train.parquet", {"image": [photo()], "caption": ["a"], "artifact_score": [0.5]})
    with pytest.raises(DatasetError, match="lacks prompt.*artifact_score.*RichHF-18K with pictures"):
        prepare(open_source(None, tmp_path / "in"), tmp_path / "out", progress=False)
    write(tmp_path / "other/train.parquet", {"image": [photo()], "prompt": ["a"]})
    with pytest.raises(DatasetError, match="no column of labels"):
        prepare(open_source(None, tmp_path / "other"), tmp_path / "out", progress=False)
    whole = write_rapidata(tmp_path / "cut/train-0.parquet", [rapidata_row(0)])
    (tmp_path / "cut/train-1.parquet").write_bytes(whole.read_bytes()[:-100])
    summary = prepare(open_source(None, tmp_path / "cut"), tmp_path / "out", **ALL_TRAIN, progress=False)
    assert "train-1.parquet is truncated" in summary.unreadable[0]
    assert summary.left_out == summary.refused + len(summary.unreadable)
    assert any("train-1.parquet" in line["reason"] for line in refused(tmp_path / "out"))
    whole.unlink()
    with pytest.raises(DatasetError, match="no shard can be read.*truncated"):
        prepare(open_source(None, tmp_path / "cut"), tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists() and kinds(summary)["joined"] == 1
    assert store.splits(tmp_path / "out") == {"train": 1}
