"""Where parameters came from: licences read from model cards, kept with models, and said at load."""

import json
import logging

import pytest

from rahf.core import licenses as origin


@pytest.mark.parametrize(
    "card, found",
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
def test_licence_of_a_model_card(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert origin.folder_license(tmp_path) == found


@pytest.mark.parametrize(
    "license", ["apache-2.0", "Apache 2.0", "MIT", "mit license", "bsd-3-clause", "CC0-1.0", "CC BY 4.0", "unlicense"]
)
def test_permissive(license):
    assert origin.is_permissive(license)


@pytest.mark.parametrize(
    "license", ["unknown", "", "CC BY-NC 4.0", "cc-by-nc-4.0", "mit-nc", "apache-2.0 for research", "openrail"]
)
def test_not_known_to_be_permissive(license):
    assert not origin.is_permissive(license)


def test_a_model_from_scratch_says_nothing(tmp_path, caplog):
    assert origin.model_licenses(tmp_path) == {} and origin.notice(tmp_path) is None
    origin.tell(tmp_path)
    assert caplog.records == []


def test_an_imported_model_says_its_licence(tmp_path, caplog):
    run = tmp_path / "richhf"
    run.mkdir()
    (run / "model.json").write_text(json.dumps({"license": "CC BY-NC 4.0", "source": "best.pt"}))
    with caplog.at_level(logging.WARNING):
        origin.tell(run)
    assert caplog.messages == ["weights of richhf come from best.pt: licence CC BY-NC 4.0"]
    (run / "model.json").write_text(json.dumps({"license": "MIT", "source": "best.pt"}))
    assert origin.notice(run) is None and origin.model_licenses(run) == {"best.pt": "MIT"}


def test_an_exported_file_says_its_licences(caplog):
    with caplog.at_level(logging.WARNING):
        for licenses in ("", "apache-2.0", "apache-2.0; CC BY-NC 4.0; unknown"):
            origin.tell_exported("model.rahf", licenses)
    assert caplog.messages == ["weights of model.rahf: licence CC BY-NC 4.0; unknown"]


def test_a_started_run_inherits_licences(tmp_path):
    record = {
        "vision": {"name": "google/vit", "license": "apache-2.0", "parameters": 1},
        "text": {"name": "/t5", "license": "unknown", "parameters": 1},
        "taken": [],
        "random": [],
    }
    origin.write(tmp_path, record)
    assert origin.model_licenses(tmp_path) == {"google/vit": "apache-2.0", "/t5": "unknown"}
    assert origin.notice(tmp_path) == f"weights of {tmp_path.name} come from /t5: licence unknown"
    inherited = {"best.pt": "CC BY-NC 4.0"}
    model = {"name": "runs/x", "license": "CC BY-NC 4.0", "licenses": inherited}
    origin.write(tmp_path, {"model": model, "random": []})
    assert origin.model_licenses(tmp_path) == inherited
    origin.write(tmp_path, {"model": model | {"license": "trained here", "licenses": {}}, "random": []})
    assert origin.model_licenses(tmp_path) == {}
    origin.write(tmp_path, {})
    assert list(tmp_path.iterdir()) == []  # a run from scratch has no record


def test_a_damaged_record_is_no_permission(tmp_path):
    (tmp_path / "model.json").write_text("{")
    assert origin.model_licenses(tmp_path) == {tmp_path.name: "unknown"}
    (tmp_path / "model.json").unlink()
    (tmp_path / "start.json").write_text("[]")
    assert origin.notice(tmp_path) == f"weights of {tmp_path.name} come from start.json: licence unknown"


def test_table():
    record = {
        "vision": {
            "name": "google/vit-large-patch16-384", "revision": "0123456789abcdef", "license": "apache-2.0",
            "parameters": 303_690_752, "positions": {"from": [24, 24], "to": [32, 32], "interpolation": "bicubic"},
        },
        "text": {"name": "t5", "revision": None, "license": "unknown", "parameters": 222_903_552},
        "random": ["projection/bias", "projection/kernel", "score_overall/out/bias"],
    }  # fmt: skip
    assert origin.table(record) == [
        "starts from                          revision      licence     parameters  positions",
        "vision google/vit-large-patch16-384  0123456789ab  apache-2.0  303.7 M     24x24 to 32x32, bicubic",
        "text t5                              -             unknown     222.9 M",
        "random: projection, score_overall (3 tensors)",
    ]
    assert origin.table({}) == []
