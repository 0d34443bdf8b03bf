"""Checkpoints: what goes in comes out; what does not fit or is damaged is named; what is there is kept."""

import gc
import logging
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest

from rahf.core.errors import CheckpointError
from rahf.training import checkpoint, orbax_silence
from tests.helpers.checkpoint_maker import assert_equal, full_disk, params, shapes, state, steps


@pytest.mark.parametrize("average", [False, True])
def test_a_state_comes_back(opened, average):
    saved = state(7, average)
    opened().save(saved, {"examples": 56, "seed": 3})
    again = opened()
    assert again.latest_step == 7
    found, position = again.restore(shapes(saved))
    assert_equal(found, saved)
    assert position == {"examples": 56, "seed": 3}


def test_only_the_newest_are_kept_and_the_best_besides(opened):
    run = opened(keep=2)
    assert run.latest_step is None and run.best_metrics() is None
    for step in (2, 4, 6):
        run.save(state(step), {})
        run.save(state(step), {})  # again, as at an interrupt right after a checkpoint: nothing happens
    run.save_best(4, params(4), {"plcc": 0.5, "nss": float("nan"), "kld": float("inf")})
    run.wait()
    assert steps(run.folder / "latest") == ["4", "6"]
    assert run.best_metrics() == {"plcc": 0.5}  # JSON has no NaN
    run.save_best(6, params(6), {"plcc": 0.6})
    run.wait()
    assert steps(run.folder / "best") == ["6"]
    assert opened().best_metrics() == {"plcc": 0.6}


def test_a_best_of_before_the_resumption_does_not_outlive_a_new_one(opened):
    opened().save_best(9, params(9), {"plcc": 0.5})
    run = opened()
    run.save_best(9, params(1), {"plcc": 0.6})
    run.save_best(6, params(2), {"plcc": 0.7})  # resumed from before 6, with other evaluations
    run.wait()
    assert steps(run.folder / "best") == ["6"]
    assert run.best_metrics() == {"plcc": 0.7}


def test_no_path_of_this_machine_is_in_a_checkpoint(opened):
    run = opened()
    run.save(state(2), {})
    run.save_best(2, params(2), {})
    run.wait()
    files = [file for file in run.folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [str(file) for file in files if str(run.folder.parent).encode() in file.read_bytes()] == []


def test_one_folder_is_written_at_a_time(opened, monkeypatch):
    """Orbax's processes would take the end of one for the end of the other."""
    checkpoints, writing = opened(), set()
    for manager in (checkpoints._latest, checkpoints._best):

        def save(*args, name=manager.directory.name, save=manager.save, **items):
            assert not writing, f"{name} begins before {writing}"
            save(*args, **items)  # waits itself, for its own folder
            writing.add(name)

        def wait(name=manager.directory.name, wait=manager.wait_until_finished):
            wait()
            writing.discard(name)

        monkeypatch.setattr(manager, "save", save)
        monkeypatch.setattr(manager, "wait_until_finished", wait)
    for step in (1, 2):
        checkpoints.save(state(step), {})
        checkpoints.save_best(step, params(step), {})
    assert writing == {"best"}


def test_discarded_checkpoints_are_gone(opened):
    run = opened()
    run.save(state(2), {})
    run.save(state(4), {})
    run.discard(3)
    run.discard(4)
    assert run.latest_step == 2 and steps(run.folder / "latest") == ["2"]


@pytest.mark.parametrize("warned", ["error", "default"])
def test_only_abandoned_writes_of_orbax_are_hushed(monkeypatch, warned):
    async def async_serialize_of_one_array():
        """Has the name of a write that Orbax drops unawaited when the disk is full."""

    async def of_somebody_else():
        """A mistake that must be seen."""

    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(str(unraisable.exc_value)))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(warned)
        silence = orbax_silence.Silence().begin()
        if warned == "error":
            warnings.simplefilter("error")  # as pytest does before each test: our filter is gone, the hook is not
        async_serialize_of_one_array()
        of_somebody_else()
        gc.collect()
        silence.end()
    heard += [str(warning.message) for warning in shown]
    assert len(heard) == 1 and "of_somebody_else" in heard[0]


def test_a_full_disk_leaves_the_previous_checkpoint(opened, capfd, caplog):
    run = opened()
    run.save(state(1, width=5000), {"examples": 8})
    run.wait()
    with full_disk(), pytest.raises(CheckpointError) as error:
        run.save(state(2, width=5000), {"examples": 16})
        run.wait()
    message = str(error.value)
    del error
    gc.collect()
    assert message.startswith(f"cannot save the checkpoint of step 2 under {run.folder}/latest: ")
    assert "File too large" in message and "step 1 is complete and usable. Free disk space" in message
    assert run.latest_step == 1
    run.close()  # as at the end of its process: none of its threads goes on writing
    found, position = opened().restore(shapes(state(1, width=5000)))  # which also removes what is unfinished
    assert_equal(found, state(1, width=5000))
    assert position == {"examples": 8}
    assert steps(run.folder / "latest") == ["1"]
    assert capfd.readouterr().err == "" and caplog.records == []  # one message, not Orbax's hundreds

    again = opened()
    again.save(state(2, width=5000), {"examples": 16})
    assert_equal(again.restore(shapes(state(2, width=5000)))[0], state(2, width=5000))


def test_no_room_for_a_first_checkpoint(opened):
    with full_disk(), pytest.raises(CheckpointError, match="Previous checkpoint: there is none yet"):
        run = opened()
        run.save(state(1, width=5000), {})
        run.wait()


def test_another_architecture_is_told_by_its_shapes(opened):
    run = opened()
    run.save(state(1), {})
    run.wait()
    other = shapes(state(1, width=4))
    del other.params["tower"]["bias"]
    other.params["head"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    lines = [
        "head: missing, expected (5,)",
        "tower/bias: not part of this model, shape (3,)",
        "tower/kernel: shape (2, 3), expected (2, 4)",
    ]
    for attempt in (
        lambda: run.restore(other),
        lambda: checkpoint.load_params(run.folder / "latest/1/state", other.params),
    ):
        with pytest.raises(CheckpointError, match="belongs to another architecture") as error:
            attempt()
        for line in lines:
            assert line in str(error.value)


def test_damage_is_named(opened):
    run = opened()
    run.save(state(1), {})
    run.wait()
    for file in (run.folder / "latest/1/state").rglob("*"):
        if file.is_file() and file.parent.name == "d":  # the arrays
            file.write_bytes(file.read_bytes()[:10])
    wanted = rf"(?s){run.folder}/latest/1: cannot be read .*remove that .*begin again"
    with pytest.raises(CheckpointError, match=wanted):
        opened().restore(shapes(state(1)))
    with pytest.raises(CheckpointError, match=rf"{run.folder}/latest/1/state: cannot be read .*damaged"):
        checkpoint.load_params(run.folder / "latest/1/state", shapes(state(1)).params)


@pytest.mark.parametrize("average", [False, True])
def test_the_average_is_what_is_handed_out(opened, average):
    run = opened()
    run.save(state(1, average), {})
    run.wait()
    found = checkpoint.load_params(run.folder / "latest/1/state", shapes(state(1)).params)
    assert_equal(found, params(101) if average else params(1))


def test_what_a_user_may_point_at(opened, tmp_path):
    folder = tmp_path / "run"
    run = opened()
    run.save(state(9), {})
    run.save(state(10), {})
    run.wait()
    (folder / "config.json").write_text("{}")
    latest, best = folder / "checkpoints/latest", folder / "checkpoints/best"
    assert checkpoint.find(folder) == (folder, latest / "10/state")  # no best one yet; 10 comes after 9
    run.save_best(9, params(9), {})
    run.wait()
    (latest / "12.orbax-checkpoint-tmp").mkdir()  # of a run that died
    assert checkpoint.find(str(folder)) == (folder, best / "9/state")
    assert checkpoint.find(latest) == (folder, latest / "10/state")
    assert checkpoint.find(latest / "9") == (folder, latest / "9/state")


def test_what_is_not_a_model_is_said(tmp_path):
    def error(path, *expected: str) -> str:
        with pytest.raises(CheckpointError) as raised:
            checkpoint.find(path, *expected)
        return str(raised.value)

    assert "no such file or directory; expected a run directory" in error(tmp_path / "absent")
    assert "no such file or directory; expected a motion model" in error(tmp_path / "absent", "a motion model")
    assert "not a model: expected a motion model, with config.json" in error(tmp_path, "a motion model")
    assert "found nothing" in error(tmp_path)
    (tmp_path / "picture.png").touch()
    assert "found picture.png" in error(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no finished checkpoint yet" in error(tmp_path)


def test_orbax_is_quiet(opened, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        run = opened()
        run.save(state(1), {})
        run.save_best(1, params(1), {"plcc": 0.5})
        again = opened()
        again.restore(shapes(state(1)))
        again.best_metrics()
        checkpoint.load_params(run.folder / "best/1/state", shapes(state(1)).params)
    spoken = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert spoken == [] and not re.search("warn", capfd.readouterr().err, re.IGNORECASE)
