"""Memory that stays with the program from step to step, and the thread that computes."""

import os
import pickle
import resource
import subprocess
import sys
import types

import numpy as np
import pytest

import rahf
from rahf.core import process
from tests.helpers import train_maker

#: Calls a computation with a buffer of 72 MB several times, with small pages on any system; prints what
#: `started` returns.
_PROGRAM = """
import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
from rahf.core import process
if sys.argv[1] == "restart":
    process.restart()
process.dispatch_in_line()
import jax, jax.numpy as jnp

@jax.jit
def buffers(x):
    return jnp.cumsum(jnp.broadcast_to(x, (2, 9 << 20)), axis=0).max()

x, faults = jnp.ones((2, 1)), []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(os.getpid(), os.environ.get("GLIBC_TUNABLES", "none"), min(faults[2:]))
"""


def started(start: str) -> tuple[int, int, str, int]:
    """Process ids when started and at the end, tunables, and the fewest page faults of a call but the first two."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    command = [sys.executable, "-c", _PROGRAM, start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        pid, tunables, faults = program.communicate(timeout=300)[0].split()
    return program.pid, int(pid), tunables, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc and its tunables are Linux's")
def test_buffers_of_a_computation_stay_with_a_restarted_program():
    glibc = tuple(int(n) for n in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))
    if glibc < (2, 35):
        pytest.skip(f"glibc {glibc} maps large blocks whatever it is told")
    pid, same, tunables, faults = started("restart")
    assert pid == same and tunables == process.TUNABLES
    pages = 72 * 2**20 // resource.getpagesize()
    assert faults < pages / 10 and started("stay")[3] >= pages


def test_tunables_of_a_users_own_are_kept(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    process.restart()  # else these tests would begin again
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


def test_a_run_whose_main_thread_computes_is_the_same_to_the_last_bit(small_config, finished_small_run, tmp_path):
    done = train_maker.in_process("train", str(small_config), "--workdir", str(tmp_path / "run"), GLIBC_TUNABLES=None)
    assert done.returncode == 0, done.stderr
    for kind in ("latest", "best"):
        (step, found), (expected_step, expected) = (
            train_maker.stored(r, kind) for r in (tmp_path / "run", finished_small_run)
        )
        assert step == expected_step
        train_maker.assert_same(found, expected)
    assert train_maker.rows(tmp_path / "run") == train_maker.rows(finished_small_run)


@pytest.mark.parametrize(
    ("begun", "settings", "expected"),
    [
        (None, {}, "false"),  # JAX is not imported
        (False, {}, "false"),
        (True, {}, None),
        (False, {"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, "true"),
        (False, {"XLA_CLIENT_MEM_FRACTION": ".3"}, None),
        (False, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".3"}, None),
    ],
)
def test_a_gpu_is_shared_unless_the_user_or_jax_came_first(monkeypatch, begun, settings, expected):
    for name in process.GPU_MEMORY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if begun is None:
        monkeypatch.delitem(sys.modules, "jax._src.xla_bridge", raising=False)
    else:
        bridge = types.SimpleNamespace(backends_are_initialized=lambda: begun)
        monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", bridge)
    process.share_gpu_memory()
    assert os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") == expected
    os.environ.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)


def test_jax_has_the_function_that_is_asked():
    from jax._src import xla_bridge

    assert xla_bridge.backends_are_initialized() in (True, False)


@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused_instead_of_hanging(tiny_critic, tiny_run):
    """JAX's threads do not exist in it: every computation would wait for ever."""
    tokens = tiny_critic.tokens("a cat")
    calls = (
        lambda: tiny_critic([np.zeros((8, 8, 3), np.uint8)], "a cat"),
        lambda: tiny_critic.scores(np.zeros((8, 8, 3), np.float32), tokens),
        lambda: tiny_critic.reward()(np.zeros((8, 8, 3), np.float32), tokens),
        lambda: rahf.load(tiny_run),
    )
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answers = []
        for call in calls:
            try:
                call()
                answers.append("it computed")
            except BaseException as error:
                answers.append(f"{type(error).__name__}: {error}")
        os.write(write, "\n".join(answers).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        lines = answers.read().splitlines()
    assert os.waitpid(child, 0)[1] == 0 and len(lines) == len(calls)
    for line in lines:
        assert line.startswith("ForkedProcess: a model was loaded before this process was forked")
        assert "load the model inside the worker" in line and "spawn" in line
    process.claim()  # this process goes on


def test_a_critic_is_not_pickled_but_says_what_to_do(tiny_critic):
    with pytest.raises(TypeError, match="a critic cannot be pickled.*call rahf.load there"):
        pickle.dumps(tiny_critic)
