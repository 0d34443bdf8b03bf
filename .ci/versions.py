#!/usr/bin/env python3
"""Runs .ci/smoke.py with the lowest and with the newest versions that setup.cfg allows, and with what a reader needs.

Usage: python .ci/versions.py UV, where UV is the program `uv`. Each set gets an environment of its own in a temporary
folder. The lowest set gets the oldest Python of this machine that setup.cfg allows, the others the newest.
"""

from __future__ import annotations

import concurrent.futures
import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden" / "v0"
#: The latest minor version of Python 3 for which every package has wheels.
NEWEST_PYTHON = 13
ATTEMPTS = 3  # of an installation, which may fail for a moment on the way to the package index
LINES = 60  # of a failed run that are printed
#: Whose versions are printed.
SHOWN = ("jax", "flax", "grain", "orbax-checkpoint", "numpy")
#: What reads an exported model (docs/export.md).
READER = ("jax", "flatbuffers", "numpy", "sentencepiece", "safetensors", "pillow")


def options() -> configparser.SectionProxy:
    """The section of setup.cfg that says what is needed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]


def lowest_python() -> int:
    """The minor version of `python_requires`."""
    return int(re.fullmatch(r">=3\.(\d+)", options()["python_requires"])[1])


def requirements() -> list[str]:
    """The lines of `install_requires`: "jax>=0.9"."""
    return [line.strip() for line in options()["install_requires"].splitlines() if line.strip()]


def release(version: str) -> str:
    """A version without zeros at its end: "5" of "5.0.0"."""
    return re.sub(r"(\.0)+$", "", version)


def check_lowest(installed: dict[str, str]) -> None:
    """Raises RuntimeError where a package is newer than its bound: nobody has tried that bound."""
    for line in requirements():
        name, bound = line.partition(";")[0].split(">=")
        version = installed[name.lower().replace("_", "-")]
        if release(version) != release(bound.strip()):
            raise RuntimeError(f"setup.cfg allows {line}, but with the others {version} is the lowest; raise the bound")


def interpreter(minor: int) -> str | None:
    """The program of Python 3.`minor`, from PATH or pyenv; None: not here, or it does not run."""
    candidates = [name] if (name := shutil.which(f"python3.{minor}")) else []
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    candidates += sorted(map(str, pyenv.glob(f"versions/3.{minor}.*/bin/python3.{minor}")), reverse=True)
    for candidate in candidates:
        code = f"import sys, venv, ctypes, ssl, sqlite3; sys.exit(sys.version_info[:2] != (3, {minor}))"
        if subprocess.run([candidate, "-c", code], capture_output=True).returncode == 0:
            return candidate
    return None


def first_of(minors: range) -> str:
    """The first Python of these versions that this machine has, else the one that runs this program."""
    return next((found for minor in minors if (found := interpreter(minor))), sys.executable)


def run(command: list[str], log: pathlib.Path, attempts: int = 1, **options) -> None:
    """Runs a command, with its output at the end of `log`; a failed one again, up to `attempts` times."""
    for attempt in range(attempts):
        with open(log, "ab") as file:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)
        if done.returncode == 0:
            return
        time.sleep(0 if attempt + 1 == attempts else 5)
    raise RuntimeError(f"exit code {done.returncode} of {' '.join(command)}")


def installed(uv: str, program: str) -> dict[str, str]:
    """Versions by name of what is installed beside a Python."""
    frozen = subprocess.run([uv, "pip", "freeze", "--python", program], capture_output=True, text=True, check=True)
    pairs = (line.split("==") for line in frozen.stdout.split() if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def check(uv: str, wheel: pathlib.Path, kind: str, folder: pathlib.Path) -> str:
    """Installs a set ("lowest", "newest" or "reader") in a new environment and does the smoke run there.

    Returns:
      What to print.

    Raises:
      RuntimeError: a step has failed; the message has the end of its output.
    """
    lowest, start, log = lowest_python(), time.monotonic(), folder / "log.txt"
    order = range(lowest, NEWEST_PYTHON + 1) if kind == "lowest" else range(NEWEST_PYTHON, lowest - 1, -1)
    environment, work = folder / "environment", folder / "work"
    work.mkdir(parents=True)
    program = str(environment / ("Scripts" if os.name == "nt" else "bin") / "python")
    # What runs a few steps is not worth optimising, and an environment must not read the compilations of another jax.
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "RAHF_COMPILE_CACHE": str(folder / "xla"),
    }
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR")} | settings
    try:
        run([uv, "venv", "--no-python-downloads", "--python", first_of(order), str(environment)], log)
        install = [uv, "pip", "install", "--python", program]
        if kind == "reader":
            run([*install, *READER], log, ATTEMPTS)
            run([*install, "--no-deps", str(wheel)], log, ATTEMPTS)
        else:
            # uv takes the lowest version of what is named on the command line, and the newest of what that needs.
            asked = ["--resolution", "lowest-direct", *requirements()] if kind == "lowest" else []
            run([*install, *asked, str(wheel)], log, ATTEMPTS)
        versions = installed(uv, program)
        if kind == "lowest":
            check_lowest(versions)
        arguments = [str(GOLDEN)] if GOLDEN.is_dir() else []
        arguments += ["--only-read"] if kind == "reader" else []
        run([program, str(ROOT / ".ci" / "smoke.py"), *arguments], log, cwd=work, env=variables, timeout=600)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-LINES:]) if log.exists() else ""
        raise RuntimeError(f"{kind} versions: {error}\n{end}") from error
    shown = [f"{name} {versions[name]}" for name in SHOWN if name in versions]
    last = log.read_text(errors="replace").splitlines()[-1]
    return f"{kind} versions ({', '.join(shown)}): {last}, {time.monotonic() - start:.0f} s"


def build(uv: str, folder: pathlib.Path) -> pathlib.Path:
    """A wheel of this repository, built from a copy, because building writes beside the sources."""
    source, log = folder / "source", folder / "build.txt"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "data", "build")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    command = [uv, "build", "--wheel", "--python", sys.executable, "--out-dir", str(folder / "wheel"), str(source)]
    try:
        run(command, log, ATTEMPTS)
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{log.read_text(errors='replace')}") from error
    return next((folder / "wheel").glob("*.whl"))


def main() -> int:
    uv = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="rahf-versions-") as name:
        folder = pathlib.Path(name)
        wheel = build(uv, folder)
        kinds = ["lowest", "newest", *(["reader"] if GOLDEN.is_dir() else [])]
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            checks = [pool.submit(check, uv, wheel, kind, folder / kind) for kind in kinds]
            failed = 0
            for done in concurrent.futures.as_completed(checks):
                try:
                    print(done.result(), flush=True)
                except RuntimeError as error:
                    failed = 1
                    print(error, file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
