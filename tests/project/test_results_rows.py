"""The rows of docs/results.md that are printed from an evaluation."""

import importlib.util
import json
import re
import sys

import pytest

METRICS = {
    "scores/plausibility/plcc": 0.6664,
    "scores/plausibility/srcc": 0.65449,
    "scores/alignment/plcc": -0.0201,
    "scores/alignment/srcc": None,
    "heatmaps/misalignment/mse": 0.003034,
    "heatmaps/misalignment/kld": 2.9321,
    "keywords/precision": 0.629,
    "keywords/recall": 0.3304,
    "keywords/f1": 0.43321,
}


@pytest.fixture(scope="module")
def script(pytestconfig):
    spec = importlib.util.spec_from_file_location("rows", pytestconfig.rootpath / "benchmarks" / "results_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows(script):
    found = script.rows("ours", METRICS)
    assert found["scores"] == "| ours | .666 / .654 | – | -.020 / – | – |"
    assert found["misalignment"] == "| ours | .00303 | – | – | 2.932 | – | – | – |"
    assert found["implausibility"] == "| ours " + "| – " * 7 + "|"
    assert found["keywords"] == "| ours | 62.9 / 33.0 / 43.3 |"


def test_of_files(script, tmp_path, monkeypatch, capsys):
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps({"metrics": METRICS, "meta": {"model": "best checkpoint"}}))
    monkeypatch.setattr(sys, "argv", ["results_rows.py", str(file)])
    script.main()
    said = capsys.readouterr().out
    assert "scores:\n| best checkpoint | .666 / .654 |" in said and said.count("best checkpoint") == 5


def test_the_document_names_files_that_exist(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "results.md").read_text()
    named = set(re.findall(r"(?:configs|benchmarks)/[\w/]+\.py", text))
    assert "configs/critic/demo.py" in named
    assert {name for name in named if not (pytestconfig.rootpath / name).is_file()} == set()
