"""Models that come with the package are found by name, wherever a model is taken."""

import pytest

import rahf
from rahf.core import shipped
from rahf.core.errors import CheckpointError
from rahf.critic import loading
from rahf.critic.evaluation import model as evaluated
from rahf.critic.export import read


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package that ships one model, `small`, and a working directory without files."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "small.rahf").write_bytes(b"PK")
    (tmp_path / "shipped" / "README.md").write_text("cards")
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_name_stands_for_the_file_unless_a_path_of_that_name_exists(folder):
    file = str(folder / "shipped" / "small.rahf")
    assert list(shipped.names()) == ["small"] and shipped.resolve("small") == file
    assert shipped.resolve("other") == "other" and shipped.resolve(folder) is folder
    (folder / "here" / "small").mkdir()
    assert shipped.resolve("small") == "small"


def test_every_command_that_takes_a_model_takes_the_name(folder, monkeypatch):
    files = []
    monkeypatch.setattr(read, "read_export", lambda path, dtype=None: files.append(str(path)))
    rahf.load("small")
    loading.load("small")
    monkeypatch.setattr(
        evaluated, "_exported", lambda file, data, batch: files.append(str(file)) or evaluated.Opened(*[None] * 9)
    )
    assert str(evaluated.open_model("small", None, None).reports) == "small-report"
    assert files == [str(folder / "shipped" / "small.rahf")] * 3


def test_an_unknown_name_lists_what_there_is(folder):
    with pytest.raises(CheckpointError, match=r"the name of a model that comes with rahf \(small\)"):
        rahf.load("smal")
