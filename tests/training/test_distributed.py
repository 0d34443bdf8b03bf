"""Two processes are one run: they train, evaluate and save together, notice each other's end, and go on exactly."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import socket
import time

import jax
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.cli import main as cli
from rahf.config import Config, MeshConfig
from rahf.core.errors import TrainError
from rahf.critic.networks import build
from rahf.training import distributed, run_lock, sharding
from tests.helpers import train_maker

# How processes find each other


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


GIVEN = {"RAHF_COORDINATOR": "host0:1234", "RAHF_PROCESSES": "4", "RAHF_PROCESS_ID": "2"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        (GIVEN, {"coordinator_address": "host0:1234", "num_processes": 4, "process_id": 2}),
        (GIVEN | {"RAHF_DISTRIBUTED": "off"}, None),
        (GIVEN | {"RAHF_PROCESSES": "1", "RAHF_PROCESS_ID": "0"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, None),  # a batch script, not a task of srun
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8"}, {}),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8", "RAHF_DISTRIBUTED": "off"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, {}),
        ({"RAHF_DISTRIBUTED": "auto"}, {}),
    ],
)
def test_what_the_environment_says(environment, wanted):
    assert distributed.initialize_arguments(environment) == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RAHF_PROCESSES": ""}, "RAHF_COORDINATOR and RAHF_PROCESS_ID given without RAHF_PROCESSES"),
        ({"RAHF_PROCESSES": "two"}, "RAHF_PROCESSES=two RAHF_PROCESS_ID=2: expected numbers"),
        ({"RAHF_PROCESS_ID": "4"}, "RAHF_PROCESS_ID=4: expected 0 to 3, as RAHF_PROCESSES=4"),
        ({"RAHF_COORDINATOR": "host0"}, "expected host:port of process 0, found 'host0'"),
        ({"RAHF_DISTRIBUTED": "yes"}, "expected auto or off, found 'yes'"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(TrainError, match=message):
        distributed.initialize_arguments(GIVEN | changes)


def listening() -> set[str]:
    """Local addresses, as Linux writes them, on which this process accepts TCP connections."""
    own = set()
    for file in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            own.add(file.readlink().name)
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        if (table := pathlib.Path("/proc/net") / name).exists()
        for line in table.read_text().splitlines()[1:]
    ]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp").exists(), reason="reads Linux' table of connections")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_coordinator_on_loopback_listens_there_only(host):
    from jax._src.lib import _jax

    port = free_port()
    arguments = distributed.initialize_arguments(GIVEN | {"RAHF_COORDINATOR": f"{host}:{port}"})
    before = listening()
    service = _jax.get_distributed_runtime_service(arguments["coordinator_bind_address"], 1)
    try:
        opened = listening() - before
    finally:
        service.shutdown()
    assert opened and all(address.endswith(f":{port:04X}") for address in opened)
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    assert {address.split(":")[0] for address in opened} <= set(loopback)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.3.2.1", "[::1]"])
def test_loopback_by_name(host):
    arguments = distributed.initialize_arguments(GIVEN | {"RAHF_COORDINATOR": f"{host}:1234"})
    assert arguments["coordinator_bind_address"] == arguments["coordinator_address"] == f"{host}:1234"


@pytest.mark.parametrize("host", ["host0", "10.0.0.7", "[fd00::2]", "localhost.example.com", "0.0.0.0"])
def test_other_coordinators_are_reachable_from_other_machines(host):
    arguments = distributed.initialize_arguments(GIVEN | {"RAHF_COORDINATOR": f"{host}:1234"})
    assert "coordinator_bind_address" not in arguments


def test_processes_on_loopback_exchange_arrays_there(monkeypatch):
    from jax._src.lib import _jax

    hosts = []
    monkeypatch.setattr(_jax, "make_gloo_tcp_collectives", lambda hostname=None: hosts.append(hostname))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: _jax.make_gloo_tcp_collectives())
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for host in ("host0", "localhost"):
        distributed._connect(distributed.initialize_arguments(GIVEN | {"RAHF_COORDINATOR": f"{host}:1234"}), 1)
    assert hosts == [None, "localhost"]


def test_alone_nothing_happens():
    with distributed.joined({}):
        assert distributed.first_then_others("name", lambda: 5) == 5
        assert distributed.reached_stop(3, True) and not distributed.reached_stop(3, False)


class Store(dict):
    """What JAX's key-value store does for us."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(folder)]

    def blocking_key_value_get(self, key, milliseconds):
        return self[key]


@pytest.fixture
def watched(monkeypatch):
    """Watches of process 0 of 3, which see `store`; and what they said before they ended the process."""
    store, said = Store(), []
    monkeypatch.setattr(distributed, "_client", lambda: store)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(distributed._Watch, "_end", lambda self, why: (said.append(why), self._stopped.set()))
    return store, said


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_silence_is_noticed(watched):
    store, said = watched
    store |= {"rahf/alive/1": "left", "rahf/alive/2": "beat 7"}  # 1 has finished; 2 says nothing new
    distributed._Watch(0.3)
    wait_for(lambda: said)
    assert said == ["process 2 of 3 has given no sign of life for 0 s"]


def test_a_failure_is_passed_on_before_anybody_waits(watched, monkeypatch):
    store, said = watched
    distributed._Watch(60.0)._stopped.set()
    watch = distributed._Watch(0.3)
    wait_for(lambda: store.get("rahf/alive/0", "").startswith("beat"))
    store["rahf/alive/2"] = "failed: no record 7"
    wait_for(lambda: said)
    assert said == ["process 2 of 3 failed: no record 7"]
    monkeypatch.setattr(distributed, "_end_soon", lambda: None)
    monkeypatch.setattr(distributed, "_WATCHES", [other := distributed._Watch(60.0)])
    distributed.report_failure(ValueError("too bad\nfor many reasons"))
    assert store["rahf/alive/0"] == "failed: too bad"
    assert other._stopped.is_set() and watch._stopped.is_set()


def test_the_end_of_the_coordinator_is_noticed(watched, monkeypatch):
    store, said = watched

    def gone(*_, **__):
        raise RuntimeError("UNAVAILABLE")

    monkeypatch.setattr(store, "key_value_dir_get", gone, raising=False)
    distributed._Watch(0.3)
    wait_for(lambda: said)
    assert said == ["process 0 of the run, which coordinates it, cannot be reached any more"]


def test_the_first_process_goes_first(watched, monkeypatch):
    store, _ = watched
    monkeypatch.setattr(distributed, "_COUNTER", itertools.count())
    assert distributed.first_then_others("claim", lambda: 5) == 5 and store["rahf/claim/0"] == "done"
    with pytest.raises(ZeroDivisionError):
        distributed.first_then_others("claim", lambda: 1 // 0)
    assert distributed.of_first("config", "mine") == "mine"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(distributed, "_COUNTER", itertools.count(2))
    assert distributed.of_first("config", "other") == "mine"
    monkeypatch.setattr(distributed, "_COUNTER", itertools.count())
    assert distributed.first_then_others("claim", lambda: 6) == 6
    with pytest.raises(TrainError, match="process 0: integer division or modulo by zero"):
        distributed.first_then_others("claim", lambda: pytest.fail("must not be called"))


def test_others_must_see_and_run_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    config = Config(workdir=str(tmp_path))
    with pytest.raises(TrainError, match="process 1 of 2 does not see .*config.json, .* file system that all"):
        run_lock.write(tmp_path, config, {})
    (tmp_path / "config.json").write_text("{}")
    run_lock.write(tmp_path, config, {})
    assert (tmp_path / "config.json").read_text() == "{}"  # process 0 has written it
    run_lock.check_same(config, config_lib.to_json(config))
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=3))
    with pytest.raises(TrainError, match="another configuration than process 0:\n  train.seed: 0 there, 3 given"):
        run_lock.check_same(other, config_lib.to_json(config))


def test_the_tensor_axis_stays_within_a_process(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    with pytest.raises(ValueError, match="mesh.tensor 8: must divide the 4 devices of each process"):
        sharding.make_mesh(MeshConfig(data=1, tensor=8), [object()] * 8)


# Two processes


#: Parameters shared by both; 11 examples in batches of 8, so that the last one is uneven.
LOG_EVERY = 2
FIELDS = ("--mesh.fsdp", "2", "--train.eval-examples", "11", "--train.log-every", str(LOG_EVERY))


def pair(arguments: list[str], tmp_path, log: str, stops=("", "")) -> list[dict]:
    """Two processes of the same command."""
    address = f"localhost:{free_port()}"
    return [
        {
            "arguments": arguments,
            "stop": stops[process],
            "log": tmp_path / f"{log}{process}.log",
            "environment": {
                "RAHF_COORDINATOR": address,
                "RAHF_PROCESSES": "2",
                "RAHF_PROCESS_ID": str(process),
                "RAHF_SILENCE_SECONDS": "20",
            },
        }
        for process in range(2)
    ]


def evaluation(folder, report: str) -> list[str]:
    """The same 11 examples as at the end of the run, with the newest parameters."""
    newest = folder / "calm" / "checkpoints" / "latest"
    return ["evaluate", str(newest), "--split", "dev", "--limit", "11", "--report", str(folder / report)]


@pytest.fixture(scope="module")
def runs(tiny_config, small_config, tmp_path_factory):
    """Runs of two processes; exit codes and what was printed.

    A critic without a break and its evaluation; and of the family that compiles in a moment one without a break and
    one that was broken twice.
    """
    folder = tmp_path_factory.mktemp("pairs")
    codes = {}
    with train_maker.Forked() as forked:
        for name, config, run, stops in (
            ("calm", tiny_config, "calm", ("", "")),
            ("small", small_config, "small", ("", "")),
            ("killed", small_config, "broken", ("", "SIGKILL:7")),
            ("preempted", small_config, "broken", ("SIGTERM:3", "")),  # only one of them is told
            ("last", small_config, "broken", ("", "")),
        ):
            command = ["train", str(config), "--workdir", str(folder / run), *FIELDS]
            codes[name] = forked.run(*pair(command, folder, name, stops))
        codes["evaluated"] = forked.run(*pair(evaluation(folder, "two"), folder, "evaluated"))
    said = {name: [(folder / f"{name}{process}.log").read_text() for process in range(2)] for name in codes}
    return folder, codes, said


def test_two_processes_train_evaluate_and_save(runs):
    folder, codes, said = runs
    assert codes["calm"] == [0, 0], said["calm"]
    assert "2 x cpu (data 1 fsdp 2 tensor 1)" in said["calm"][0]
    assert "evaluated 11 of dev at step 12" in said["calm"][0]
    assert "step" not in said["calm"][1]  # only the first one speaks
    rows = train_maker.rows(folder / "calm")
    assert len({(row["step"], "eval/loss/total" in row) for row in rows}) == len(rows) == 8
    assert len(list((folder / "calm" / "tensorboard").iterdir())) == 1
    assert train_maker.stored(folder / "calm")[0] == 12


def test_two_processes_learn_what_one_does(runs, finished_run):
    def losses(run):
        return [row for row in train_maker.rows(run) if "loss/total" in row]

    for found, wanted in zip(losses(runs[0] / "calm"), losses(finished_run), strict=True):
        assert found.keys() == wanted.keys()
        for name in found:
            assert found[name] == pytest.approx(wanted[name], rel=1e-3), (found["step"], name)


def test_metrics_are_exact_over_an_uneven_last_batch(runs):
    """Both processes' examples, each once, against one process that evaluates the same parameters."""
    folder, codes, said = runs
    assert codes["evaluated"] == [0, 0], said["evaluated"]
    assert cli.main(evaluation(folder, "one")) == 0
    reports = {name: json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "two")}
    (row,) = [row for row in train_maker.rows(folder / "calm") if "eval/loss/total" in row and row["step"] == 12]
    at_the_end = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
    assert len(at_the_end) > 20
    for name, wanted in reports["one"]["metrics"].items():
        for found in (reports["two"]["metrics"][name], at_the_end[name]):
            assert found == wanted or found == pytest.approx(wanted, rel=1e-3, abs=1e-4), name


def test_the_other_ends_when_one_is_killed(runs):
    _, codes, said = runs
    assert codes["killed"][1] == -9 and codes["killed"][0] not in (0, -9), said["killed"]
    assert "process" in said["killed"][0] and "from its last checkpoint" in said["killed"][0]


def test_both_stop_at_the_same_step_when_one_is_told_to(runs):
    _, codes, said = runs
    assert codes["preempted"] == [143, 143], said["preempted"]
    assert "SIGTERM: saved step" in said["preempted"][0]


def test_a_broken_run_of_two_ends_the_same(runs):
    folder, codes, said = runs
    assert codes["small"] == [0, 0], said["small"]
    assert codes["last"] == [0, 0], said["last"]
    assert "resuming at step" in said["last"][0]
    for kind in ("latest", "best"):
        step, found = train_maker.stored(folder / "broken", kind)
        expected_step, expected = train_maker.stored(folder / "small", kind)
        assert step == expected_step
        train_maker.assert_same(found, expected)  # to the last bit
    # The process that is told to stop writes its losses so far; the next row has the rest of the two steps.
    stopped = int(re.search(r"SIGTERM: saved step (\d+)", said["preempted"][0])[1])
    apart = {stopped, stopped + 1} if stopped % LOG_EVERY else set()
    rows = {run: train_maker.rows(folder / run) for run in ("broken", "small")}
    rows = {run: [row for row in found if row["step"] not in apart] for run, found in rows.items()}
    assert rows["broken"] == rows["small"] and len(rows["small"]) >= 6


def test_one_process_reads_what_two_have_saved(runs):
    from rahf.nn import functional
    from rahf.training import checkpoint

    run, state = checkpoint.find(runs[0] / "calm")
    config = config_lib.from_json((run / "config.json").read_text())
    params = checkpoint.load_params(state, functional.abstract(build.build(config.model))[1])
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in functional.flatten(params).values())
