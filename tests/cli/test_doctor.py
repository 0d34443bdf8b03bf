"""`rahf doctor` and the compilation cache: what is found, what is broken, and that the cache is on by default."""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from rahf.cli import doctor_checks
from rahf.cli import main as cli
from rahf.core import compile_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]


def by_name(checks) -> dict[str, doctor_checks.Check]:
    return {check.name: check for check in checks}


def test_a_healthy_machine(tmp_path, capsys):
    assert cli.main(["doctor", "--json", "--workdir", str(tmp_path / "runs" / "new")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["jax"]["found"] == jax.__version__
    assert checks["python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert checks["cpu:0"]["section"] == "devices" and checks["arithmetic"]["found"] == "works"
    assert checks["fused attention"]["found"] == "XLA (cpu)"
    assert checks["compile cache"]["found"] == f"works, in {os.environ['JAX_COMPILATION_CACHE_DIR']}"
    assert checks["disk for runs"]["found"].endswith(str(tmp_path))  # the part of the path that exists
    assert {c["verdict"] for c in found["checks"] if c["section"] == "optional parts"} <= {"ok", "absent"}
    assert not (tmp_path / "runs").exists()


def test_the_table(capsys):
    console = Console(width=100, highlight=False)
    assert doctor_checks.run(console=console) == 0
    said = capsys.readouterr().out
    assert f"✓    jax                       {jax.__version__}" in said
    assert "fused attention" in said and "everything essential works" in said


def test_what_is_missing_is_broken_or_not(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(*names):
        def found(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", found)

    without("simplejpeg")
    assert by_name(doctor_checks.versions())["simplejpeg"].verdict == "warning"
    without("grain")
    checks = by_name(doctor_checks.versions())
    assert checks["grain"].verdict == "broken" and "pip install grain" in checks["grain"].found
    assert cli.main(["doctor"]) == 1
    assert "1 broken: grain" in capsys.readouterr().out


def test_a_look_that_fails_is_a_line(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no backend\nand more")

    monkeypatch.setattr(doctor_checks, "devices", broken)
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    line = {"section": "devices", "name": "broken", "verdict": "broken", "found": "RuntimeError: no backend"}
    assert line in found["checks"]


def test_attention_on_a_gpu_is_tried(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # which it is not, so cuDNN must fail
    (check,) = doctor_checks.fused_attention()
    assert check.verdict == "warning" and check.found.startswith("XLA; cuDNN does not work here: ")


def test_a_cache_that_does_not_work_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setenv("RAHF_COMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor_checks, "_compile_probe", lambda: 0)
    (check,) = doctor_checks.cached_compilation()
    assert check.verdict == "warning" and f"compiled twice (0 hits) in spite of {tmp_path / 'cache'}" in check.found
    monkeypatch.setenv("RAHF_COMPILE_CACHE", "off")
    (check,) = doctor_checks.cached_compilation()
    assert check.verdict == "warning" and check.found.startswith("off")


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, pathlib.Path.home() / ".cache/rahf/compiled"),
        ({"XDG_CACHE_HOME": "/x"}, pathlib.Path("/x/rahf/compiled")),
        ({"JAX_COMPILATION_CACHE_DIR": "/y"}, pathlib.Path("/y")),
        ({"RAHF_COMPILE_CACHE": "/z", "JAX_COMPILATION_CACHE_DIR": "/y"}, pathlib.Path("/z")),
        ({"RAHF_COMPILE_CACHE": "off", "JAX_COMPILATION_CACHE_DIR": "/y"}, None),
    ],
)
def test_where_the_cache_lies(environment, wanted):
    assert compile_cache.location(environment) == wanted


PROBE = """
import sys
from rahf.cli import main as cli
from rahf.cli import doctor
def compile(args):
    import jax
    found = []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
    jax.jit(lambda x: x @ x.T + 3).lower(jax.ShapeDtypeStruct((50, 50), "float32")).compile()
    print("HITS", found.count("/jax/compilation_cache/cache_hits"))
    return 0
doctor.run = compile
sys.exit(cli.main(["doctor"]))
"""


def test_a_second_start_does_not_compile_again(tmp_path):
    """A command, as it is started by a user who has configured nothing."""
    ours = ("JAX_COMPILATION_CACHE_DIR", "RAHF_COMPILE_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def hits() -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split("HITS")[1])

    assert hits() == 0
    assert any((tmp_path / "rahf" / "compiled").iterdir())
    assert hits() == 1
