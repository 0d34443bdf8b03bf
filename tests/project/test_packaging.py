"""What is installed: everything the command needs, nothing else, and it works without the clone."""

import ast
import configparser
import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
TOP = {"rahf", "data_pipelines"}
FILES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "constraints.txt")


def sources(*folders: str) -> set[str]:
    """Python files below folders, relative to the repository."""
    return {str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py")}


def required(section: str, option: str) -> set[str]:
    """Names of the distributions that an option of setup.cfg asks for."""
    lines = SETUP[section][option].split("\n")
    return {re.split(r"[\[<>=!~ ;]", line.strip())[0].lower().replace("_", "-") for line in lines if line.strip()}


BUILD = """
import sys, setuptools.build_meta as backend
print("BUILT", getattr(backend, "build_" + sys.argv[1])(sys.argv[2]))
"""


def build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Builds the wheel or the sdist of a folder, as pip and `python -m build` do, without an index."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, kind, str(out)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=source)
    assert built.returncode == 0, built.stderr
    return out / built.stdout.splitlines()[-1].removeprefix("BUILT ")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> pathlib.Path:
    """A source distribution, built from a copy, so that the repository stays as it is."""
    folder = tmp_path_factory.mktemp("sdist")
    clone = folder / "clone"
    clone.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, clone)
    for name in ("rahf", "data_pipelines", "configs", "tests", "benchmarks", "docs", "notebooks", ".ci"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    assert (clone / "rahf/configs").is_symlink()
    return build("sdist", clone, folder)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> pathlib.Path:
    """The wheel that is built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


def test_a_wheel_of_the_clone_holds_the_same_files(sdist, wheel, tmp_path):
    direct = build("wheel", sdist.parent / "clone", tmp_path)
    assert zipfile.ZipFile(direct).namelist() == zipfile.ZipFile(wheel).namelist()


def test_the_source_distribution_holds_what_its_tests_need(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert sources("tests", "benchmarks", "configs") | {*FILES, ".ci/run", ".ci/versions.py", ".ci/smoke.py"} <= names


def test_it_holds_every_file_that_is_needed_and_no_other(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in names if name.endswith(".py")}
    configs = {f"rahf/{name}" for name in sources("configs")}
    assert code == sources("rahf", "data_pipelines") | configs
    assert "rahf/configs/critic/demo.py" in code
    rest = {name for name in names - code if not name.split("/")[0].endswith(".dist-info")}
    reports = ("critic/evaluation", "comparison")
    templates = [file for name in reports for file in (ROOT / "rahf" / name / "report/templates").glob("*")]
    shipped = [file for kind in ("*.rahf", "photograph.*") for file in (ROOT / "rahf/shipped").glob(kind)]
    folders = ("annotate/page", "motion/templates", "saliency/templates")
    pages = [file for name in folders for file in (ROOT / "rahf" / name).glob("*")]
    schema = ROOT / "data_pipelines/feedback/line.schema.json"
    extra = [*templates, *shipped, *pages, schema]
    assert rest == {file.relative_to(ROOT).as_posix() for file in extra if file.is_file()}
    assert {name.split("/")[0] for name in code} == TOP
    assert any(re.fullmatch(r"rahf-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)


def test_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(name.rsplit("/", 1)[0] for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    license = metadata["License-Expression"] or metadata["License"]  # newer and older setuptools
    assert metadata["Name"] == "rahf" and license == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == {
        "annotate", "browser", "gpu", "lite", "motion", "notebook", "ray", "test", "torch", "tpu"
    }  # fmt: skip
    asked = {
        re.split(r"[<>=!;\[ ]", line)[0].lower() for line in metadata.get_all("Requires-Dist") if "extra" not in line
    }
    assert {name.replace("_", "-") for name in asked} == required("options", "install_requires")
    assert "rahf = rahf.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert archive.read(f"{info}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """Runs Python in an empty folder where rahf is only what the wheel holds, beside the other packages."""
    unpacked = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(unpacked)
    others = [p for p in sys.path if p.endswith("-packages")]
    empty = tmp_path_factory.mktemp("empty")

    def run(code: str) -> subprocess.CompletedProcess:
        # -I: no current folder, no PYTHONPATH; -S: no start-up files, so no editable installation.
        start = f"import sys; sys.path[:0] = [{str(unpacked)!r}]; sys.path += {others!r}\n"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, cwd=empty, timeout=600
        )

    return unpacked, run


def test_the_command_runs_without_the_clone(elsewhere):
    unpacked, run = elsewhere
    helped = run("from rahf.cli import main as cli; print(cli.__file__); cli.main(['--help'])")
    assert helped.returncode == 0, helped.stderr
    assert helped.stdout.startswith(f"{unpacked}/rahf/cli/main.py\nusage: rahf ")
    found = run(
        "from rahf import config\nprint(config.find('configs/critic/demo.py'))\nprint(config.load('demo.py').workdir)"
    )
    assert found.stdout.splitlines() == [f"{unpacked}/rahf/configs/critic/demo.py", "runs/demo"], found.stderr


def test_every_module_imports_without_the_clone(elsewhere):
    """And none of them needs TensorFlow or PyTorch, array-record, which Windows has not, or what only tests have."""
    unpacked, run = elsewhere
    modules = sorted(
        str(p.relative_to(unpacked).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for p in unpacked.rglob("*.py")
        if p.name != "__main__.py" and "rahf/annotate" not in p.as_posix()  # it needs its extra, and says so
    )
    absent = (
        "array_record",
        "tensorflow",
        "torch",
        "torchvision",
        "fastapi",
        "sqlalchemy",
        "uvicorn",
        "diffusers",
        "ray",
        "pytest",
        "beartype",
        "setuptools",
    )
    code = (
        "import grain  # imports array-record itself on every system that has it\n"
        f"for name in {absent!r}: sys.modules[name] = None  # importing it fails\n"
        "import importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print('imported', len(sys.modules))\n"
        "importlib.util.find_spec = lambda name: None\n"
        "import rahf.annotate\n"
    )
    found = run(code)
    assert found.stdout.startswith("imported"), found.stderr
    assert found.stderr.splitlines()[-1].endswith("pip install rahf[annotate]"), found.stderr


def third_party(*folders: str) -> set[str]:
    """Packages that code imports anywhere, also within functions."""
    found = set()
    for file in sources(*folders):
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - TOP


def test_everything_imported_is_asked_for():
    distributions = {"PIL": "pillow", "google": "protobuf", "absl": "absl-py", "orbax": "orbax-checkpoint"}
    asked = required("options", "install_requires")
    imported = {
        distributions.get(name, name).lower().replace("_", "-") for name in third_party("rahf", "data_pipelines")
    }
    # PyTorch and Ray in functions which say how to install them, as the package `rahf.annotate` does of its own.
    annotate = required("options.extras_require", "annotate") - {"httptools", "uvloop"}  # uvicorn's
    assert imported - asked == {"torch", "ray", *annotate}
    assert "torch" in required("options.extras_require", "torch") and "ray" in required("options.extras_require", "ray")
    assert not {"tensorflow", "torch", "tensorflow-cpu"} & asked


def test_every_folder_with_code_is_a_package():
    """setup.cfg finds packages by their `__init__.py`."""
    folders = {pathlib.Path(file).parent for file in sources("rahf", "data_pipelines")}
    assert {str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()} == set()


def test_every_package_has_a_lower_bound():
    """The lowest versions are those that `make versions` installs and tries."""
    lines = [line.strip() for line in SETUP["options"]["install_requires"].splitlines() if line.strip()]
    bounded = re.compile(r"[\w.-]+>=\d+(\.\d+)*(; sys_platform != \"win32\")?")
    unbounded = [line for line in lines if not bounded.fullmatch(line)]
    assert len(lines) > 20 and unbounded == []


def test_constraints_pin_everything_asked_for():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)  # no address, no path
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert len(pinned) == len(lines)
    extras = (required("options.extras_require", extra) for extra in ("test", "torch", "ray", "annotate", "browser"))
    assert required("options", "install_requires").union(*extras) <= pinned
    assert not {"tensorflow", "rahf"} & pinned


def test_make_does_what_the_readme_promises(tmp_path):
    """The commands, as make would run them; nothing is installed here."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    # `make test` itself runs these tests: what was asked of it, by CI for one, is not asked of the programs here.
    outer = ("EXTRAS", "ROOM", "PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    variables = {name: value for name, value in os.environ.items() if name not in outer}

    def planned(*arguments: str, **environment: str) -> str:
        command = [make, "--no-print-directory", "-n", *arguments]
        plan = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True, env=variables | environment
        )
        return plan.stdout

    pytest_command = ".venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile"
    tests = f"{pytest_command} --no-loadscope-reorder tests"
    for target, last in (("demo", ".venv/bin/rahf demo"), ("test", tests)):
        plan = planned(target)
        assert plan.splitlines()[-1] == last
        assert "-m pip install" in plan and '-c constraints.txt -e ".[test]"' in plan
    assert '-e ".[test,torch,ray]"' in planned("test", EXTRAS="test,torch,ray")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed-test").touch()
    assert planned("test") == tests + "\n"  # once is enough
    assert planned("test", "ROOM=critic") == tests + "/critic\n"
    assert planned("demo") == ".venv/bin/rahf demo\n"
    checks = (".venv/bin/ruff check", ".venv/bin/ruff format --check", ".venv/bin/lint-imports --no-cache")
    assert tuple(planned("lint").splitlines()) == checks
    assert planned("versions") == ".venv/bin/python .ci/versions.py .venv/bin/uv\n"
    old = subprocess.run(
        [make, "-B", ".venv/.installed-test", "PYTHON=false #"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=variables,
    )
    assert old.returncode != 0 and not (tmp_path / ".venv/bin").exists()
    run = (ROOT / ".ci/run").read_text()
    assert "export EXTRAS=test,torch,ray,annotate,browser,motion" in run.splitlines()
    assert run.splitlines()[-3:] == ["make lint", "make versions", "make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111 and ".ci/chromium" in run.splitlines()


@pytest.mark.parametrize("user, reason", [(1000, "no right to install it"), (0, "apt-get could not install chromium")])
def test_ci_goes_on_without_a_browser(tmp_path, user, reason):
    """The tests in a browser are skipped then, with their own reason."""
    for name, text in (("id", f"echo {user}"), ("apt-get", "exit 100")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    command = [shutil.which("bash"), str(ROOT / ".ci/chromium")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and reason in done.stdout and "are skipped" in done.stdout
