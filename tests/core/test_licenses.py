"""Licenses of parameters: read from model cards, recorded beside models, and logged when a model is loaded."""

import json
import logging

import pytest

from rahf.core import licenses


@pytest.mark.parametrize(
    "card, license",
    [
        ("---\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ('---\ntags:\n- x\nlicense: "cc-by-nc-4.0"  \n---\n', "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: gemma-terms\n---\n", "gemma-terms"),
        ("---\nlicense: other\n---\n", "unknown"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown"),  # outside of the front matter
        ("license: mit\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_license_of_a_model_card(tmp_path, card, license):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licenses.folder_license(tmp_path) == license


@pytest.mark.parametrize(
    "license", ["apache-2.0", "Apache 2.0", "MIT", "mit license", "bsd-3-clause", "CC0-1.0", "CC BY 4.0", "unlicense"]
)
def test_permissive(license):
    assert licenses.is_permissive(license)


@pytest.mark.parametrize(
    "license", ["unknown", "", "CC BY-NC 4.0", "cc-by-nc-4.0", "mit-nc", "apache-2.0 for research", "openrail"]
)
def test_not_known_to_be_permissive(license):
    assert not licenses.is_permissive(license)


def test_a_model_from_scratch_logs_nothing(tmp_path, caplog):
    assert licenses.model_licenses(tmp_path) == {} and licenses.license_notice(tmp_path) is None
    licenses.log_licenses(tmp_path)
    assert caplog.records == []


def test_an_imported_model_logs_its_license(tmp_path, caplog):
    run = tmp_path / "richhf"
    run.mkdir()
    (run / "model.json").write_text(json.dumps({"license": "CC BY-NC 4.0", "source": "best.pt"}))
    with caplog.at_level(logging.WARNING):
        licenses.log_licenses(run)
    assert caplog.messages == ["weights of richhf come from best.pt: license CC BY-NC 4.0"]
    (run / "model.json").write_text(json.dumps({"license": "MIT", "source": "best.pt"}))
    assert licenses.license_notice(run) is None and licenses.model_licenses(run) == {"best.pt": "MIT"}


def test_an_exported_file_logs_its_licenses(caplog):
    with caplog.at_level(logging.WARNING):
        for weight_license in ("", "apache-2.0", "apache-2.0; CC BY-NC 4.0; unknown"):
            licenses.log_export_licenses("model.rahf", weight_license)
    assert caplog.messages == ["weights of model.rahf: license CC BY-NC 4.0; unknown"]


def test_a_started_run_inherits_licenses(tmp_path):
    record = {
        "vision": {"name": "google/vit", "license": "apache-2.0", "parameters": 1},
        "text": {"name": "/t5", "license": "unknown", "parameters": 1},
        "taken": [],
        "random": [],
    }
    licenses.write_start_record(tmp_path, record)
    assert licenses.model_licenses(tmp_path) == {"google/vit": "apache-2.0", "/t5": "unknown"}
    assert licenses.license_notice(tmp_path) == f"weights of {tmp_path.name} come from /t5: license unknown"
    inherited = {"best.pt": "CC BY-NC 4.0"}
    model = {"name": "runs/x", "license": "CC BY-NC 4.0", "licenses": inherited}
    licenses.write_start_record(tmp_path, {"model": model, "random": []})
    assert licenses.model_licenses(tmp_path) == inherited
    licenses.write_start_record(tmp_path, {"model": model | {"license": "trained here", "licenses": {}}, "random": []})
    assert licenses.model_licenses(tmp_path) == {}
    licenses.write_start_record(tmp_path, {})
    assert list(tmp_path.iterdir()) == []  # a run from scratch has no record


def test_a_damaged_record_is_no_permission(tmp_path):
    (tmp_path / "model.json").write_text("{")
    assert licenses.model_licenses(tmp_path) == {tmp_path.name: "unknown"}
    (tmp_path / "model.json").unlink()
    for damaged in ("[" * 100_000, "\udcff", "1" * 5000):
        (tmp_path / "start.json").write_text(damaged, errors="surrogateescape")
        assert licenses.model_licenses(tmp_path) == {"start.json": "unknown"}
    (tmp_path / "start.json").write_text('{"vision": {"name": "a", "license": "MIT", "licenses": 5}}')
    assert licenses.model_licenses(tmp_path) == {"a": "MIT", "damaged": "unknown"}
    (tmp_path / "start.json").write_text('{"vision": {"name": "a", "license": "\\u001b[2J\\nfree"}}')
    assert licenses.license_notice(tmp_path).isprintable()
    (tmp_path / "start.json").write_text("[]")
    assert licenses.license_notice(tmp_path) == f"weights of {tmp_path.name} come from start.json: license unknown"


def test_table():
    record = {
        "vision": {
            "name": "google/vit-large-patch16-384", "revision": "0123456789abcdef", "license": "apache-2.0",
            "parameters": 303_690_752, "positions": {"from": [24, 24], "to": [32, 32], "interpolation": "bicubic"},
        },
        "text": {"name": "t5", "revision": None, "license": "unknown", "parameters": 222_903_552},
        "random": ["projection/bias", "projection/kernel", "score_overall/out/bias"],
    }  # fmt: skip
    assert licenses.start_table(record) == [
        "starts from                          revision      license     parameters  positions",
        "vision google/vit-large-patch16-384  0123456789ab  apache-2.0  303.7 M     24x24 to 32x32, bicubic",
        "text t5                              -             unknown     222.9 M",
        "random: projection, score_overall (3 tensors)",
    ]
    assert licenses.start_table({}) == []
