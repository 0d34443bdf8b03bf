"""The floors of docs/architecture.md: who imports whom, where files stand, and that tests stand beside them."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ("rahf", "data_pipelines")

#: Imports of our own code inside functions: (file, module) and the reason. Everything in rahf/cli may do so, too,
#: because help must start fast.
INSIDE_FUNCTIONS = {
    ("rahf/critic/critic.py", "rahf.critic.apply"): "a critic's description is read without JAX",
    ("rahf/critic/loading.py", "rahf.critic.export.read"): "exported files are read without Flax",
    ("rahf/critic/loading.py", "rahf.critic.from_run"): "runs need Flax, exported files do not",
    ("rahf/saliency/loading.py", "rahf.saliency.export.read"): "exported files are read without Flax",
    ("rahf/saliency/loading.py", "rahf.training.saved_model"): "runs need Flax, exported files do not",
    ("rahf/interop/diffusers.py", "rahf.steer.repaint.repair"): "exported files are read without SciPy and jaxtyping",
    ("rahf/registry.py", "rahf.training.loop"): "importing the table imports neither Flax nor Orbax",
    ("rahf/registry.py", "rahf.training.saved_model"): "importing the table imports neither Flax nor Orbax",
    ("rahf/scoring/run.py", "rahf.scoring.ray_runner"): "Ray is optional",
}


#: Files that read with `read_bytes` or `read_text`, which would wait for ever at a FIFO in the place of the file.
READ_THEIR_OWN = {
    "rahf/annotate/application.py", "rahf/motion/touch.py", "rahf/critic/export/card.py",  # files of the package
    "rahf/saliency/target_page.py",
    "data_pipelines/feedback/check.py",  # the schema in the package
    "rahf/training/checkpoint.py",  # what it has just written
    "rahf/cli/machine_checks.py",  # the kernel's, which are no regular files
}  # fmt: skip


def files() -> list[pathlib.Path]:
    return [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]


def imports_inside_functions(file: pathlib.Path) -> set[str]:
    """What the functions of a file import of our own code: a module, or a module and a name in it."""
    names = set()
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{file}: relative imports hide where a module stands"
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def test_packages_import_only_from_the_floors_below():
    """The contracts in pyproject.toml, which `make lint` checks, too."""
    pytest.importorskip("importlinter", reason="needs import-linter: pip install rahf[test]")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    checked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_circle_of_files():
    """Counted with imports inside functions, without those that only type checkers read."""
    grimp = pytest.importorskip("grimp", reason="needs import-linter: pip install rahf[test]")
    graph = grimp.build_graph(*OURS, exclude_type_checking_imports=True, cache_dir=None)
    imported_by = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert circles(imported_by) == []


def circles(imported_by: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach one another."""
    reached = {name: set() for name in imported_by}
    for name in imported_by:
        waiting = [name]
        while waiting:
            new = imported_by[waiting.pop()] - reached[name]
            reached[name] |= new
            waiting += new
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in imported_by}
    return sorted(sorted(group) for group in groups if group)


def test_a_circle_is_noticed():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert circles(graph) == [["a", "b", "c"]]


def test_imports_inside_functions_are_the_declared_ones():
    inside = {
        (file.relative_to(ROOT).as_posix(), name)
        for file in files()
        if ROOT / "rahf/cli" not in file.parents
        for name in imports_inside_functions(file)
    }
    assert inside - INSIDE_FUNCTIONS.keys() == set()
    assert INSIDE_FUNCTIONS.keys() - inside == set(), "declared, but no longer there"


def test_the_root_holds_the_face_the_registry_and_packages():
    entries = {p for p in (ROOT / "rahf").iterdir() if p.name != "__pycache__"}
    assert {p.name for p in entries if p.is_file()} <= {"__init__.py", "registry.py"}
    assert all((p / "__init__.py").is_file() for p in entries if p.is_dir())


def test_tests_stand_where_the_code_stands():
    """tests/X/Y tests rahf/X/Y, tests/data_pipelines/Y tests data_pipelines/Y; every package of rahf has its tests."""
    rooms = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    for room in rooms - {pathlib.Path("project")}:
        package = ROOT / room if room.parts[:1] == ("data_pipelines",) else ROOT / "rahf" / room
        assert (package / "__init__.py").is_file(), f"tests/{room} tests no package {package.relative_to(ROOT)}"
    packages = {p.parent.name for p in (ROOT / "rahf").glob("*/__init__.py")} - {"configs"}
    assert packages - {room.parts[0] for room in rooms} == set(), "packages without tests"


def test_documents_name_what_is_there():
    """Links between documents, and the files and modules of ours that they name."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        text = document.read_text()
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        assert [link for link in links if not (document.parent / link).exists()] == [], document.name
        files = re.findall(r"(?:rahf|configs|benchmarks|data_pipelines|tests)/[\w/]+\.py", text)
        missing = {name for name in files if not re.search("[A-Z]{3}", name) and not (ROOT / name).is_file()}
        assert missing == set(), document.name


def test_what_comes_from_outside_is_read_as_regular_file():
    """By `rahf.core.files.read_regular` or `open_regular`."""
    reading = {
        file.relative_to(ROOT).as_posix()
        for file in files()
        if re.search(r"\.read_bytes\(\)|\.read_text\(", file.read_text())
    }
    assert reading == READ_THEIR_OWN
