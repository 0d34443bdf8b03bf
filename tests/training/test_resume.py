"""A run that was ended in any way goes on to the very same end: parameters, optimizer, metrics, to the last bit."""

import json
import random
import shutil
import signal

import pytest

from rahf.training import checkpoint
from rahf.training.loop import Interrupt
from rahf.training.prefetch import Prefetch
from tests.helpers import train_maker
from tests.helpers.checkpoint_maker import full_disk
from tests.helpers.ended_run import at_batch
from tests.helpers.train_maker import train

STEPS = 12


def saved(run) -> list[int]:
    """Steps of all complete checkpoints for resuming."""
    return sorted(int(p.name) for p in (run / "checkpoints/latest").glob("*") if p.name.isdigit())


def assert_same_end(run, finished) -> None:
    """As if the run had never been ended."""
    for kind in ("latest", "best"):
        step, found = train_maker.stored(run, kind)
        expected_step, expected = train_maker.stored(finished, kind)
        assert step == expected_step == STEPS
        train_maker.assert_same(found, expected)
    position = "checkpoints/latest/12/data/metadata"
    assert json.loads((run / position).read_text()) == json.loads((finished / position).read_text())
    rows, expected = train_maker.rows(run), train_maker.rows(finished)
    assert rows == expected
    assert len({(row["step"], "eval/loss/total" in row) for row in rows}) == len(rows) == 8


def test_a_killed_run_ends_bit_identically(small_config, finished_small_run, tmp_path):
    # A critic's run goes on bit-identically in tests/project/test_golden_v0.py.
    seed = random.SystemRandom().randrange(2**32)
    step = random.Random(seed).randrange(2, STEPS + 1)
    print(f"seed {seed}: killed at step {step}, then while saving")  # shown if the test fails
    run = tmp_path / "run"
    killed = train_maker.in_process("train", str(small_config), "--workdir", str(run), stop=f"SIGKILL:{step}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = (step - 1) // 4 * 4
    reached = max([0, *saved(run)])
    assert reached in (before, max(before - 4, 0))  # the last one may still have been on its way to the disk

    killed = train_maker.in_process("train", str(small_config), "--workdir", str(run), stop="saving:1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert f"killed beside {reached + 4}" in killed.stdout

    assert train(small_config, run) == 0
    assert_same_end(run, finished_small_run)


def test_signals_save_and_say_so(small_config, finished_small_run, tmp_path, monkeypatch, capsys):
    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)  # a shell lets its background jobs ignore it
    ended = train_maker.in_process("train", str(small_config), "--workdir", str(run), stop="SIGTERM:2")
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stdout.splitlines()[-1] == "SIGTERM: saved step 2 and stopped; the same command goes on from there"
    assert ended.stderr.split("; ")[0] == "\nSIGTERM: stopping after this step, with a checkpoint"
    assert saved(run) == [2]

    with monkeypatch.context() as patch:
        patch.setattr(Prefetch, "take", Prefetch.take)  # at_batch replaces it
        at_batch(6, lambda: signal.raise_signal(signal.SIGINT))
        assert train(small_config, run) == 128 + signal.SIGINT
    said = capsys.readouterr().out.splitlines()
    assert f"resuming at step 2 in {run}" in said
    assert said[-1] == "SIGINT: saved step 8 and stopped; the same command goes on from there"
    assert signal.getsignal(signal.SIGINT) is before

    assert train(small_config, run) == 0
    assert_same_end(run, finished_small_run)


def test_a_second_ctrl_c_ends_at_once():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_full_disk_leaves_the_previous_checkpoint(small_config, finished_small_run, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    save = checkpoint.Checkpointer._save

    def on_a_full_disk(self, manager, step, tree, **items):
        if step < 8:
            return save(self, manager, step, tree, **items)
        self.wait()
        with full_disk():
            save(self, manager, step, tree, **items)
            self.wait()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "_save", on_a_full_disk)
        assert train(small_config, run) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rahf: cannot save the checkpoint of step 8 under {run}/checkpoints/latest: ")
    assert "File too large" in error
    assert "Previous checkpoint: step 4 is complete and usable. Free disk space" in error
    assert "Traceback" not in error
    assert saved(run) == [4]
    assert checkpoint.find(run / "checkpoints/latest")[1] == run / "checkpoints/latest/4/state"

    assert train(small_config, run) == 0
    assert_same_end(run, finished_small_run)


def test_a_finished_run_can_go_on(small_config, finished_small_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_small_run, run)
    assert train(small_config, run) == 0
    assert "the run is complete at step 12; raise train.steps to go on" in capsys.readouterr().out
    assert_same_end(run, finished_small_run)
    assert train(small_config, run, "--train.steps", "13") == 0
    assert "with another train.steps: 12 there, 13 given" in capsys.readouterr().out
    assert saved(run) == [12, 13]
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 13
    assert list(run.glob("*.unfinished")) == []
