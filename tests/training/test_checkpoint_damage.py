"""Checkpoints that are damaged are noticed and set aside; the only good one is never lost."""

import json
import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import CheckpointError
from rahf.training import checkpoint, checksum
from tests.helpers.checkpoint_maker import assert_equal, full_disk, params, shapes, state, steps

# What must never be lost


def damage(folder) -> None:
    """Cuts off every file of the arrays of a checkpoint."""
    for file in (folder / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(opened):
    run = opened(keep=3)
    for step in (2, 4, 6):
        run.save(state(step), {"examples": 8 * step})
    run.wait()
    damage(run.folder / "latest/6")
    (run.folder / "latest/4/data/metadata").write_text("{")
    again = opened(keep=3)
    found, position = again.restore(shapes(state(2)))
    assert_equal(found, state(2))
    assert position == {"examples": 16}
    said = re.compile(r"latest/(\d): cannot be read .* moved to (.*); going on from step 2")
    assert [said.search(notice).groups() for notice in again.notices] == [
        ("6", f"{run.folder}/damaged/6"),
        ("4", f"{run.folder}/damaged/4"),
    ]
    assert steps(run.folder / "latest") == ["2"] and steps(run.folder / "damaged") == ["4", "6"]
    again.save(state(4), {})  # and comes to that step again
    assert opened(keep=3).restore(shapes(state(2)))[0].step == 4


def test_a_changed_bit_is_noticed(opened, monkeypatch):
    """Whatever the files' own checks say: the arrays that come back must be those that went in."""
    run = opened()
    run.save(state(1), {})
    run.save(state(2), {})
    run.wait()
    file = run.folder / "latest/2/checksums/metadata"
    numbers = json.loads(file.read_text())
    assert set(numbers) == {"step", "params/tower/bias", "params/tower/kernel", *(f"opt_state/{i}" for i in range(3))}
    file.write_text(json.dumps(numbers | {"params/tower/bias": numbers["params/tower/bias"] ^ 1}))
    again = opened()
    assert again.restore(shapes(state(1)))[0].step == 1
    assert "params/tower/bias: another checksum than when it was saved" in again.notices[0]


def test_before_there_were_checksums(opened):
    run = opened()
    run.save(state(1), {})
    broken = state(2)
    broken.params["tower"]["kernel"] = broken.params["tower"]["kernel"].at[1, 1].set(jnp.nan)
    run.save(broken, {})
    run.wait()
    for step in "12":
        shutil.rmtree(run.folder / f"latest/{step}/checksums")
    again = opened()
    assert_equal(again.restore(shapes(state(1)))[0], state(1))
    assert "latest/2: cannot be read (params/tower/kernel: values not finite (NaN or infinite))" in again.notices[0]


def test_a_damaged_best_is_not_handed_out(opened):
    run = opened()
    run.save_best(1, params(1), {})
    run.wait()
    file = run.folder / "best/1/checksums/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"params/tower/bias": 1}))
    with pytest.raises(CheckpointError, match="params/tower/bias: another checksum .* damaged: name another one"):
        checkpoint.load_params(run.folder / "best/1/state", shapes(state(1)).params)


def test_the_only_good_one_outlives_a_failed_save(opened):
    run = opened(keep=1)
    run.save(state(1, width=5000), {})
    run.save_best(1, params(1, width=5000), {"plcc": 0.5})
    run.wait()
    with full_disk():
        for save in (lambda: run.save(state(2, width=5000), {}), lambda: run.save_best(2, params(2, width=5000), {})):
            with pytest.raises(CheckpointError):
                save()
                run.wait()
    assert_equal(opened(keep=1).restore(shapes(state(1, width=5000)))[0], state(1, width=5000))
    assert opened(keep=1).best_metrics() == {"plcc": 0.5}
    with pytest.raises(ValueError, match="train.keep_checkpoints: expected at least 1, found 0"):
        opened(keep=0)


def test_what_is_saved_is_what_was_there_when_it_was_called(opened):
    """The step after a save takes over the state's memory while the files are still being written."""
    width = 200_000
    saved, wanted = state(1, width=width), state(1, width=width)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 + 7, tree), donate_argnums=0)
    run = opened()
    run.save(saved, {})
    after = overwrite(saved)
    jax.block_until_ready(after)  # a backend that cannot take the memory over yet makes a copy
    run.wait()
    assert_equal(run.restore(shapes(wanted))[0], wanted)


def test_saving_goes_on_behind_the_caller(opened, monkeypatch):
    run, begun, go_on = opened(), threading.Event(), threading.Event()
    finalize = run._latest._finalize

    def late(*arguments):
        begun.set()
        go_on.wait(60)
        finalize(*arguments)

    monkeypatch.setattr(run._latest, "_finalize", late)
    run.save(state(1), {})
    assert begun.wait(60)  # and yet `save` has returned
    go_on.set()
    assert run.latest_step == 1


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5), (2**20 + 3,), (0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.int32, np.uint8])
def test_checksums_on_host_and_device(shape, dtype):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    bits = values.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize]).astype(object)
    wanted = sum(int(b) * (2 * i + 1) for i, b in enumerate(bits)) % 2**32
    assert checksum.by_numpy(values) == wanted
    assert int(checksum.by_devices(jnp.asarray(values))) == wanted


def test_every_single_change_shows():
    values = np.random.default_rng(1).standard_normal(50).astype(np.float32)
    before = checksum.of_arrays({"a": values})
    for i in range(50):
        changed = values.copy()
        changed[i] = np.nextafter(changed[i], np.inf)
        assert checksum.differing(checksum.of_arrays({"a": changed}), before) == ["a"]
    assert checksum.differing(before, before) == [] and checksum.differing({"b": 1}, before) == []
