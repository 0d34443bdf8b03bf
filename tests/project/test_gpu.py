"""benchmarks/gpu.py: order, limits, failures, what a cut-off run keeps; its tables; the pack for a bare machine."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from data_pipelines import store
from tests.helpers.benchmark_programs import ROOT


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def run(tmp_path):
    import gpu

    def run(measurement, code, budget=60):
        """A run whose only measurement is this Python code."""
        this = gpu.Run(tmp_path / "out", budget, None, tmp_path / "site")
        return this.measure(measurement, [sys.executable, "-c", code]), lines(this.file)

    return run


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def measurement(**options):
    import gpu

    return gpu.Measurement(**{"name": "limits", "command": ("x",), "limit": 60, "least": 1} | options)


def test_the_last_line_of_a_program_is_its_result(run):
    status, (line,) = run(measurement(), "print('starting'); print('{\"a\": 1}'); print('done')")
    assert status == line["status"] == "ok" and line["result"] == {"a": 1} and line["measurement"] == "limits"


def test_failures_are_lines_and_say_why(run, tmp_path):
    import gpu_table

    assert run(measurement(), "raise ValueError('no such card')")[0] == "error"
    assert run(measurement(), "pass")[1][-1]["error"] == "it printed no result"
    out_of_memory = 'print(\'{"error": "out of memory"}\')'
    assert run(measurement(), out_of_memory)[1][-1]["error"] == "out of memory"
    assert run(measurement(name="torch_tuned"), "print('{}'); raise SystemExit(3)")[0] == "error"
    status, all_lines = run(measurement(), "print('{\"bfloat16_tflop_per_second\": 700.5}')")
    assert status == "ok" and len(all_lines) == 5  # the run goes on
    assert "no such card" in all_lines[0]["error"] and all_lines[3]["error"].startswith("exit code 3")
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "700.5 TFLOP/s" in table and "* torch_tuned: error, exit code 3" in table
    assert gpu_table.succeeded(gpu_table.read(tmp_path / "out" / "gpu.jsonl")) == {"limits"}


def test_a_measurement_is_ended_with_all_that_it_started(run, tmp_path):
    """The child of the program would write a file after the limit."""
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    code = "import subprocess, sys; print('{\"b\": 2}', flush=True); "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    status, (line,) = run(measurement(limit=1), code)
    assert status == "timeout" and line["result"] == {"b": 2} and "stopped after 1 s" in line["error"]
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_waiting_for_a_turn_does_not_count(run):
    code = """
        import os, pathlib, time
        mark = pathlib.Path(os.environ["RAHF_BENCHMARK_TURNS"] + f".waiting.{os.getpid()}")
        mark.touch(); time.sleep(1.6); mark.unlink(); print("{}")
    """
    assert run(measurement(limit=1), textwrap.dedent(code))[0] == "ok"
    assert run(measurement(limit=60), "import time; time.sleep(60)", budget=1.5)[0] == "timeout"  # the budget does


def test_what_has_no_time_left_is_skipped(run):
    status, (line,) = run(measurement(least=30), "print('{}')", budget=20)
    assert status == "skipped" and "of the budget left, it takes 30" in line["error"]


def test_the_memory_of_a_small_card_is_a_real_limit(tmp_path):
    import gpu

    this = gpu.Run(tmp_path, 1, {"gpu": "NVIDIA H100", "memory_mib": 81920}, tmp_path)
    assert this._environment(measurement(memory=16, gib=16))["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.2000"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in this._environment(measurement())


def test_what_is_not_timed_tries_no_kernels_out(tmp_path):
    import gpu

    this = gpu.Run(tmp_path, 1, {"gpu": "NVIDIA H100", "memory_mib": 81920}, tmp_path)
    flag = "--xla_gpu_autotune_level=0"
    assert flag in this._environment(measurement(turn="shared"))["XLA_FLAGS"]
    assert flag not in this._environment(measurement(turn="own")).get("XLA_FLAGS", "")


def test_as_many_measurements_at_once_as_the_memory_holds():
    import gpu

    begun, ends, changed = [], {}, threading.Condition()

    def work(one):
        with changed:
            begun.append(one.name)
            changed.notify_all()
        ends[one.name].wait()

    def after(count):
        with changed:
            assert changed.wait_for(lambda: len(begun) == count, 10)
        time.sleep(0.05)  # nothing more is begun
        return begun[:]

    names = {"full": 64, "parts": 44, "small": 16, "smaller": 4, "tuned": 96, "alone": 0, "last": 4}
    todo = [measurement(name=name, memory=memory) for name, memory in names.items()]
    ends.update({name: threading.Event() for name in names})
    failed = []
    worker = threading.Thread(target=gpu.side_by_side, args=(todo, work, 130.0, 3, lambda: failed.append(1)))
    worker.start()
    assert set(after(3)) == {"full", "parts", "small"}  # three programs
    ends["small"].set()
    assert after(4)[3] == "smaller"
    for name in ("parts", "smaller"):
        ends[name].set()
    assert len(after(4)) == 4  # the next one needs more than what is free
    ends["full"].set()
    assert after(5)[4] == "tuned"
    ends["tuned"].set()
    assert after(6)[5] == "alone"  # and nothing beside it
    ends["alone"].set()
    assert after(7)[6] == "last"
    ends["last"].set()
    worker.join(10)
    assert not worker.is_alive() and not failed


def test_two_compile_at_a_time_and_one_is_timed(tmp_path, monkeypatch):
    import turns

    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a'), getattr(fcntl, sys.argv[2]) | fcntl.LOCK_NB)"

    def free(kind):
        arguments = [sys.executable, "-c", code, str(tmp_path / "turns"), kind]
        return subprocess.run(arguments, capture_output=True).returncode == 0

    monkeypatch.setattr(turns, "_held", [])
    monkeypatch.delenv(turns.VARIABLE, raising=False)
    turns.alone()
    assert not turns._held  # nobody else is there
    monkeypatch.setenv(turns.VARIABLE, str(tmp_path / "turns"))
    try:
        turns.share()
        assert free("LOCK_SH") and not free("LOCK_EX")
        turns.alone()
        assert not free("LOCK_SH")
    finally:
        os.close(turns._held[0])
    assert free("LOCK_EX")
    # A program that knows nothing of turns keeps the lock in its own process.
    program = [sys.executable, "-c", "print('on', flush=True); input()"]
    command = [sys.executable, str(ROOT / "benchmarks/turns.py"), "alone", *program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "on\n" and not free("LOCK_SH")
        running.communicate("\n")
    assert free("LOCK_EX")


def test_an_ended_run_says_what_was_running(tmp_path):
    import gpu

    this = gpu.Run(tmp_path / "out", 60, None, tmp_path / "site")
    code = "import time; print('{\"a\": 1}', flush=True); time.sleep(60)"
    worker = threading.Thread(target=this.measure, args=(measurement(), [sys.executable, "-c", code]))
    worker.start()
    while not this._running:
        time.sleep(0.01)
    this.stop()
    worker.join()
    (line,) = lines(this.file)
    assert line["status"] == "interrupted" and line["error"] == "the run was ended from outside"
    assert this.measure(measurement(), [sys.executable, "-c", "print('{}')"]) == "interrupted"  # nothing is begun


def test_every_measurement_is_a_program_that_takes_its_arguments(tmp_path):
    import gpu

    for sizes in (gpu.ON_GPU, gpu.ON_CPU):
        every = gpu.measurements(sizes, "data", tmp_path)
        names = [m.name for m in every]
        assert len(names) == len(set(names)) and all((ROOT / "benchmarks" / m.command[0]).is_file() for m in every)
        assert names.index("check_attention") < names.index("limits") < names.index("train_full")
        assert (
            names.index("train_full")
            < names.index("torch_tuned")
            < names.index("check_upsampling")
            < names.index("rehearsal")
        )


def test_shortest_form_on_this_machine(tmp_path, capfd):
    """The whole way of one real measurement, in a process of its own."""
    import gpu

    assert gpu.main(["--only", "limits", "--out", str(tmp_path), "--pack", str(tmp_path / "none")]) == 0
    about, limits = lines(tmp_path / "gpu.jsonl")
    assert about["measurement"] == "run" and limits["status"] == "ok"
    assert limits["result"]["copy_gb_per_second"] > 0 and limits["result"]["float32_tflop_per_second"] > 0
    assert "limits: ok" in capfd.readouterr().out
    assert gpu.main(["--only", "limits", "--out", str(tmp_path), "--pack", str(tmp_path / "none")]) == 0
    assert [line["measurement"] for line in lines(tmp_path / "gpu.jsonl")] == ["run", "limits", "run"]  # not again
    assert gpu.main(["--only", "limit", "--out", str(tmp_path)]) == 2
    assert "--only limit: no such measurement" in capfd.readouterr().err


# Tables


def test_tables():
    import gpu_table

    speed = {"images_per_second": 90.0, "ms": 355.6, "batch": 32, "tflop_per_second": 500.0, "peak_gib": 44.1}
    speed |= {"share_of_matmul_peak": 0.65, "compile_seconds": 70.0}
    table = gpu_table.tables(
        {
            "run": {"status": "ok", "time": "2026-12-01T10:00:00", "result": {"gpu": "NVIDIA H100"}},
            "train_full": {"status": "ok", "result": speed},
            "torch_tuned": {"status": "ok", "result": {"images_per_second": 60.0, "ms": 533.3, "batch": 32}},
            "torch_eager": {"status": "timeout", "error": "stopped after 90 s"},
            "check_export": {"status": "ok", "result": {"passed": False}},
        }
    )
    assert table.startswith("NVIDIA H100, 2026-12-01")
    assert "| training, ours (wanted: ≤ 45 GiB, ≥ 50%) | 32 | 90.0 | 355.6 | 500.0 | 44.1 GiB | 65% | 70.0 s |" in table
    assert "| training, PyTorch tuned | 32 | 60.0 | 533.3 | – | not measured | – | – |" in table
    assert "| training, ours / PyTorch tuned | 1.50 | ≥ 1.5 |" in table
    assert "| training, ours / PyTorch eager | not measured | ≥ 7 |" in table
    assert "| check: export | FAILED |" in table and "| check: attention | not measured |" in table
    assert "* torch_eager: timeout, stopped after 90 s" in table


def test_a_cut_off_line_is_left_out_and_a_failure_replaces_no_success(tmp_path):
    import gpu_table

    file = tmp_path / "gpu.jsonl"
    ok, bad = {"measurement": "a", "status": "ok", "result": {}}, {"measurement": "a", "status": "error"}
    file.write_text(
        f"{json.dumps(ok)}\n{json.dumps(bad)}\n{json.dumps(bad | {'measurement': 'b'})}\n{json.dumps(ok)[:20]}"
    )
    assert gpu_table.read(file) == {"a": ok, "b": bad | {"measurement": "b"}}
    assert gpu_table.read(tmp_path / "none") == {}


# The pack


def test_pack_of_data_stays_below_its_size(tiny_data, tmp_path):
    import gpu_pack

    size = int(0.8 * sum(file.stat().st_size for file in tiny_data.iterdir()))
    counts = gpu_pack.copy_data(tiny_data, tmp_path / "data", size)
    assert sum(file.stat().st_size for file in (tmp_path / "data").iterdir()) <= size
    assert 0 < counts["train"] < 48 and counts["dev"] > 0 and counts["test"] > 0
    record, copy = (store.open_split(folder, "train")[counts["train"] - 1] for folder in (tiny_data, tmp_path / "data"))
    assert copy.uid == record.uid and copy.image == record.image
    np.testing.assert_array_equal(copy.scores, record.scores)
    assert store.tokenizer_path(tmp_path / "data").read_bytes() == store.tokenizer_path(tiny_data).read_bytes()


def test_data_that_do_not_fit_at_all(tiny_data, tmp_path):
    import gpu_pack

    with pytest.raises(store.DatasetError, match="not one record fits into 0.0 MB; raise --megabytes"):
        gpu_pack.copy_data(tiny_data, tmp_path / "data", 1000)


def test_pack_takes_what_the_machine_lacks(tmp_path, monkeypatch):
    import gpu_pack

    (tmp_path / "freeze.txt").write_text("# packages\njax==0.11.2\nPyYAML @ file:///x\nzipp==3\n")
    assert gpu_pack.installed(tmp_path / "freeze.txt") == {"jax", "pyyaml", "zipp"}
    wanted = {}
    monkeypatch.setattr(gpu_pack, "download", lambda versions, folder: wanted.update(versions) or ["x==1"])
    text = gpu_pack.pack(tmp_path / "pack", None, None, 1, [])
    assert {"grain", "array-record", "tyro", "tensorflow-datasets"} <= wanted.keys()
    assert not {"jax", "torch", "numpy", "pytest"} & wanted.keys()
    assert "promise" in wanted  # published as source alone: download builds its wheel
    assert "not packed: x==1" in text and (tmp_path / "pack" / "wheels").is_dir()
    (tmp_path / "freeze.txt").write_text("\n")
    with pytest.raises(ValueError, match="expected what `pip freeze` prints"):
        gpu_pack.installed(tmp_path / "freeze.txt")
