"""What `rahf train` refuses before anything is computed, and who may go on in a run directory."""

import dataclasses
import json
import os
import re
import shutil

import jax
import pytest

from data_pipelines.synthetic.prepare import prepare
from rahf import config as config_lib
from rahf.core.errors import TrainError
from rahf.training import run_lock
from rahf.training.task import SavedFile
from tests.helpers.train_maker import train

# What is refused, in one line, before anything is computed


def refused(capsys, config, run, *fields) -> str:
    assert train(config, run, *fields) == 1
    found = capsys.readouterr()
    assert "Traceback" not in found.err and found.err.startswith("rahf: ")
    return found.err.removeprefix("rahf: ")


def test_another_configuration_in_the_same_place(tiny_config, finished_run, capsys):
    before = (finished_run / "config.json").read_bytes()
    error = refused(capsys, tiny_config, finished_run, "--model.vit.depth", "2", "--loss.score-weight", "0.5")
    assert error.splitlines() == [
        f"{finished_run} holds a run with another configuration:",
        "  loss.score_weight: 1.0 there, 0.5 given",
        "  model.vit.depth: 1 there, 2 given",
        "Choose another --workdir, or give the same configuration to resume.",
    ]
    assert (finished_run / "config.json").read_bytes() == before


def test_another_process_trains_there(tiny_config, finished_run, tmp_path, capsys):
    files = {file: file.stat().st_mtime_ns for file in finished_run.rglob("*") if file.is_file()}
    with run_lock.held(finished_run):
        error = refused(capsys, tiny_config, finished_run, "--train.steps", "13")
    assert f"{finished_run}: another process ({os.getpid()}) trains there; wait until it has ended" in error
    assert {file: file.stat().st_mtime_ns for file in finished_run.rglob("*") if file.is_file()} == files
    with run_lock.held(tmp_path / "new"):
        assert "trains there" in refused(capsys, tiny_config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_refused_resumption_leaves_everything_as_it_was(tiny_config, finished_run, tmp_path, capsys):
    """The data have changed: this is noticed when the loader goes on, after configuration and checkpoint fit."""
    other = tmp_path / "other"
    prepare(other, train=48, dev=12, test=10, size=48, progress=False)  # of the same vocabulary
    files = {file: file.stat().st_mtime_ns for file in finished_run.rglob("*") if file.is_file()}
    error = refused(capsys, tiny_config, finished_run, "--data.path", str(other), "--train.steps", "13")
    assert "the saved position belongs to other data" in error
    assert {file: file.stat().st_mtime_ns for file in finished_run.rglob("*") if file.is_file()} == files


def test_a_place_that_is_no_run(tiny_config, tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert "is not empty and not a run directory" in refused(capsys, tiny_config, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_wrong_data(tiny_config, tiny_data, tmp_path, capsys):
    run = tmp_path / "run"
    assert f"{tmp_path}/absent is not there" in refused(capsys, tiny_config, run, "--data.path", f"{tmp_path}/absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a prepared dataset" in refused(capsys, tiny_config, run, "--data.path", str(empty))
    error = refused(capsys, tiny_config, run, "--data.eval-split", "devv")
    assert "has no split 'devv'; it has" in error and "dev (12 records)" in error
    emptied = tmp_path / "emptied"
    shutil.copytree(tiny_data, emptied)
    info = json.loads((emptied / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = ["0"]
    (emptied / "dataset_info.json").write_text(json.dumps(info))
    assert "split 'train' is empty" in refused(capsys, tiny_config, run, "--data.path", str(emptied))
    error = refused(capsys, tiny_config, run, "--data.tokenizer", "t5.model")
    assert (
        "data.tokenizer: no file t5.model; give a SentencePiece model, the folder of a T5, 'start', 'dataset' or "
        "'prompts'" in error
    )
    error = refused(capsys, tiny_config, run, "--model.t5.vocab-size", "100")
    assert re.search(r"has \d+ pieces, model.t5.vocab_size is only 100; set it to at least that", error)


def test_an_unknown_metric_suggests_the_nearest(tiny_config, tmp_path, capsys):
    error = refused(capsys, tiny_config, tmp_path / "run", "--train.best-metric", "scores/mean/plc")
    assert (
        error == "train.best_metric: no metric 'scores/mean/plc' of a critic model configured like this. "
        "Did you mean 'scores/mean/plcc'?\n"
    )
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there(tiny_config, tmp_path, capsys):
    count = len(jax.devices())
    error = refused(capsys, tiny_config, tmp_path / "run", "--mesh.data", "3", "--mesh.fsdp", str(5 * count))
    assert f"needs {15 * count} devices, there are {count}" in error


# Who may go on in a run directory


def words(content=b"words"):
    return {"tokenizer.model": SavedFile(content, "the data's vocabulary data/tokenizer.model")}


def acquire(run, config, files) -> list[str]:
    changes = run_lock.check(run, config, files)
    run_lock.write(run, config, files)
    return changes


def begin(run) -> None:
    (run / "checkpoints/latest/4").mkdir(parents=True)


def test_until_the_first_checkpoint_anyone_may_begin_again(tmp_path):
    run = tmp_path / "run"
    first, second = config_lib.Config(), config_lib.Config(data=config_lib.DataConfig(eval_split="test"))
    assert acquire(run, first, words()) == []
    (run / "checkpoints/latest/4.orbax-checkpoint-tmp").mkdir(parents=True)  # died while saving its first
    assert acquire(run, second, words(b"others")) == []
    assert config_lib.from_json((run / "config.json").read_text()) == second
    assert (run / "tokenizer.model").read_bytes() == b"others"
    begin(run)
    with pytest.raises(TrainError, match="data.eval_split: 'test' there, 'dev' given"):
        acquire(run, first, words(b"others"))
    with pytest.raises(TrainError, match="differs from the data's vocabulary data/tokenizer.model"):
        acquire(run, second, words())


def test_what_may_change_is_written_down(tmp_path):
    config = config_lib.Config()
    acquire(tmp_path, config, words())
    begin(tmp_path)
    train_config = dataclasses.replace(config.train, checkpoint_every=7, steps=30_000)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-5)
    mesh = config_lib.MeshConfig(fsdp=4)
    changed = dataclasses.replace(config, workdir="elsewhere", train=train_config, optimizer=optimizer, mesh=mesh)
    assert acquire(tmp_path, changed, words()) == [
        "optimizer.learning_rate: 0.0001 there, 1e-05 given",
        "train.steps: 20000 there, 30000 given",
    ]
    assert config_lib.from_json((tmp_path / "config.json").read_text()) == changed
    assert acquire(tmp_path, changed, words()) == []


def test_a_run_that_died_before_its_config_was_whole(tmp_path):
    (tmp_path / ".config.json.1a2b3c4d.unfinished").write_text('{"workdir"')
    (tmp_path / "checkpoints" / "latest" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").mkdir()
    assert acquire(tmp_path, config_lib.Config(), words()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "config.json", "tokenizer.model"]
    (tmp_path / "config.json").unlink()
    begin(tmp_path)
    with pytest.raises(TrainError, match="is not empty and not a run directory"):
        run_lock.check(tmp_path, config_lib.Config(), words())
