"""`rahf doctor` and the compilation cache: its report, what counts as broken, and that the cache is on by default."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from rahf.cli import doctor, machine_checks
from rahf.cli import main as cli
from rahf.core import compile_cache, process
from rahf.nn import attention

ROOT = pathlib.Path(__file__).resolve().parents[2]


def by_name(checks) -> dict[str, machine_checks.Check]:
    return {check.name: check for check in checks}


def test_a_healthy_machine(tmp_path, capsys):
    assert cli.main(["doctor", "--json", "--workdir", str(tmp_path / "runs" / "new")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["jax"]["found"] == jax.__version__
    assert checks["python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert checks["cpu:0"]["section"] == "devices" and checks["arithmetic"]["found"] == "works"
    assert checks["fused attention"]["found"] == "XLA (cpu)"
    assert checks["compile cache"]["found"] == f"works, in {os.environ['JAX_COMPILATION_CACHE_DIR']}"
    assert checks["disk for runs"]["found"].endswith(str(tmp_path))  # the part of the path that exists
    assert {c["verdict"] for c in report["checks"] if c["section"] == "optional parts"} <= {"ok", "absent"}
    assert not (tmp_path / "runs").exists()


def test_the_table(capsys):
    doctor.print_table(machine_checks.examine(), Console(width=100, highlight=False))
    out = capsys.readouterr().out
    assert f"✓    jax                       {jax.__version__}" in out
    assert "fused attention" in out and "everything essential works" in out


def test_a_missing_package_is_broken_or_a_warning(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(missing):
        def version_or_error(name):
            if name == missing:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", version_or_error)

    without("simplejpeg")
    assert by_name(machine_checks.versions())["simplejpeg"].verdict == "warning"
    without("grain")
    checks = by_name(machine_checks.versions())
    assert checks["grain"].verdict == "broken" and "pip install grain" in checks["grain"].found
    assert cli.main(["doctor"]) == 1
    assert "1 broken: grain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("json", ""),
        ("json:JSONDecoder.decode", ""),
        ("json:JSONDecoder.close", "AttributeError: type object 'JSONDecoder' has no attribute 'close'"),
        ("rahf.nowhere", "ModuleNotFoundError: No module named 'rahf.nowhere'"),
    ],
)
def test_what_is_vouched_for_is_imported(place, problem):
    assert machine_checks.import_problem(place) == (f"but it does not work: {problem}" if problem else "")


def test_a_package_that_does_not_import_is_broken_or_a_warning(monkeypatch):
    problem = "but it does not work: ImportError: too old"
    bad = {"flax.nnx", "simplejpeg", "torch"}
    monkeypatch.setattr(machine_checks, "import_problem", lambda place: problem if place in bad else "")
    checks = by_name([*machine_checks.versions(), *machine_checks.optional()])
    assert checks["flax"].verdict == "broken" and checks["simplejpeg"].verdict == "warning"
    assert checks["flax"].found == f"{importlib.metadata.version('flax')}, {problem}"
    assert checks["grain"].verdict == "ok"
    assert checks["torch"].verdict in ("warning", "absent")


def test_a_version_below_the_lowest_is_broken(monkeypatch):
    required = ["grain>=999.1", "flax>=0.1", "numpy", 'torch>=999; extra == "torch"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: required)
    checks = by_name(machine_checks.versions())
    grain = importlib.metadata.version("grain")
    assert (checks["grain"].verdict, checks["grain"].found) == (
        "broken",
        f"{grain}, too old: pip install 'grain>=999.1'",
    )
    assert checks["flax"].verdict == checks["numpy"].verdict == "ok"


def test_memory_beside_pytorch(monkeypatch):
    assert machine_checks.gpu_memory() == []  # no GPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for name in process.GPU_MEMORY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (check,) = machine_checks.gpu_memory()
    assert check.verdict == "warning" and "XLA_PYTHON_CLIENT_PREALLOCATE=false" in check.found
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".3")
    (check,) = machine_checks.gpu_memory()
    assert (check.verdict, check.found) == ("ok", "XLA_CLIENT_MEM_FRACTION=.3")


def test_a_check_that_fails_is_a_line(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no backend\nand more")

    monkeypatch.setattr(machine_checks, "devices", broken)
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    line = {"section": "devices", "name": "broken", "verdict": "broken", "found": "RuntimeError: no backend"}
    assert line in report["checks"]


def test_attention_on_a_gpu_is_tried(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # it is a CPU, so cuDNN must fail
    (check,) = machine_checks.fused_attention()
    assert check.verdict == "warning" and check.found.startswith("XLA; cuDNN does not work here: ")


def test_attention_on_a_gpu_is_tried_as_the_network_calls_it(monkeypatch):
    """cuDNN's kernel does not take a mask [B,1,1,K], which is refused before it is called."""
    computed = attention.padded_attention

    def like_cudnn(*args):
        assert args[-1] == "cudnn"
        return computed(*args[:-1], "xla")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "padded_attention", like_cudnn)
    (check,) = machine_checks.fused_attention()
    assert check.verdict == "ok" and check.found.startswith("cuDNN, masks included; differs by ")


def test_a_cache_that_does_not_work_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setenv("RAHF_COMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine_checks, "_compile_probe", lambda: 0)
    (check,) = machine_checks.cached_compilation()
    assert check.verdict == "warning" and f"compiled twice (0 hits) in spite of {tmp_path / 'cache'}" in check.found
    monkeypatch.setenv("RAHF_COMPILE_CACHE", "off")
    (check,) = machine_checks.cached_compilation()
    assert check.verdict == "warning" and check.found.startswith("off")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, pathlib.Path.home() / ".cache/rahf/compiled"),
        ({"XDG_CACHE_HOME": "/x"}, pathlib.Path("/x/rahf/compiled")),
        ({"JAX_COMPILATION_CACHE_DIR": "/y"}, pathlib.Path("/y")),
        ({"RAHF_COMPILE_CACHE": "/z", "JAX_COMPILATION_CACHE_DIR": "/y"}, pathlib.Path("/z")),
        ({"RAHF_COMPILE_CACHE": "off", "JAX_COMPILATION_CACHE_DIR": "/y"}, None),
    ],
)
def test_where_the_cache_lies(environment, expected):
    assert compile_cache.location(environment) == expected


PROBE = """
import sys
from rahf.cli import main as cli
from rahf.cli import doctor
def compile(args):
    import jax
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.jit(lambda x: x @ x.T + 3).lower(jax.ShapeDtypeStruct((50, 50), "float32")).compile()
    print("HITS", events.count("/jax/compilation_cache/cache_hits"))
    return 0
doctor.run = compile
sys.exit(cli.main(["doctor"]))
"""


def test_a_second_start_does_not_compile_again(tmp_path):
    """As a user starts it who has configured nothing."""
    configured = ("JAX_COMPILATION_CACHE_DIR", "RAHF_COMPILE_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in configured}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def hits() -> int:
        process = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600
        )
        assert process.returncode == 0, process.stderr
        return int(process.stdout.split("HITS")[1])

    assert hits() == 0
    assert any((tmp_path / "rahf" / "compiled").iterdir())
    assert hits() == 1
