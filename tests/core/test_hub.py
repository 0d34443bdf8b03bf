"""Models by hub id: local paths win, the cache serves without a network, errors say what to do. No downloads here."""

import os
import shutil

import huggingface_hub
import numpy as np
import pytest

import rahf
from rahf.core import hub
from rahf.core.errors import CheckpointError
from rahf.critic.evaluation import model as model_lib
from rahf.training import run_folder
from tests.helpers.image_maker import smooth


@pytest.fixture
def downloads(monkeypatch):
    """Folders by (id, revision) that the hub would send; every other one does not exist. Records what is asked for."""
    folders, asked = {}, []

    def snapshot_download(repository, revision=None):
        asked.append((repository, revision))
        if (repository, revision) not in folders:
            raise OSError("404 Client Error")
        return str(folders[repository, revision])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folders["asked"] = asked
    return folders


def test_a_run_from_the_hub_is_the_run(downloads, tiny_run, tiny_critic, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commit = tmp_path / "0123abcd"  # as the cache names its folders
    shutil.copytree(tiny_run, commit)
    downloads["people/tiny", None] = downloads["people/tiny", "v2"] = commit
    critic = rahf.load("people/tiny")
    assert critic.name == tiny_critic.name and critic.model_id == tiny_critic.model_id
    image = smooth(32, 32)
    np.testing.assert_allclose(critic.score(image, "a cat"), tiny_critic.score(image, "a cat"), atol=1e-6)
    assert rahf.load("people/tiny", revision="v2").model_id == tiny_critic.model_id
    assert downloads["asked"] == [("people/tiny", None), ("people/tiny", "v2")]


def test_local_paths_win(downloads, tiny_run, tiny_critic, monkeypatch):
    monkeypatch.chdir(tiny_run.parent.parent)
    path = f"{tiny_run.parent.name}/{tiny_run.name}"
    assert rahf.load(path).model_id == tiny_critic.model_id
    # A folder "runs" is there, so "runs/demo" is a path with a mistake in it, not a repository.
    with pytest.raises(CheckpointError, match="no such file or directory"):
        rahf.load(f"{tiny_run.parent.name}/nowhere")
    assert downloads["asked"] == []
    for local in (path, tiny_run, "one", "a/b/c", "../x", "/abs/olute"):
        with pytest.raises(ValueError, match="revision: 'main' has a meaning for hub ids only"):
            rahf.load(local, revision="main")
    assert downloads["asked"] == []


def test_exported_files_are_found(downloads, tmp_path):
    downloads["people/exported", None] = tmp_path
    (tmp_path / "demo.rahf").write_bytes(b"")
    (tmp_path / "README.md").write_text("")
    assert hub.download("people/exported") == tmp_path / "demo.rahf"
    (tmp_path / "other.rahf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"people/exported: several exported files \(demo.rahf, other.rahf\)"):
        rahf.load("people/exported")


def test_what_is_no_model_is_named(downloads, tmp_path):
    downloads["people/other", "main"] = tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="people/other at revision main: not a model: .* found model.safetensors"):
        rahf.load("people/other", revision="main")
    with pytest.raises(
        CheckpointError, match="(?s)people/nothing: no such file .*404 Client Error.*hf download people"
    ):
        rahf.load("people/nothing")


def test_the_cache_serves_without_a_network(tiny_run, tiny_critic, tmp_path, monkeypatch):
    """A cache as the hub's client writes it: files are links into a folder of blobs."""
    repository, commit = tmp_path / "models--people--cached", "0" * 39 + "1"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(tiny_run, repository / "blobs")
    for folder, _, files in os.walk(repository / "blobs"):
        place = snapshot / os.path.relpath(folder, repository / "blobs")
        place.mkdir(parents=True)
        for name in files:
            (place / name).symlink_to(os.path.join(folder, name))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert rahf.load("people/cached").model_id == tiny_critic.model_id
    with pytest.raises(CheckpointError, match="people/absent: no such file or directory, and it cannot be downloaded"):
        rahf.load("people/absent")


def test_evaluation_and_start_take_an_id_and_leave_the_cache_alone(downloads, tiny_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    commit = tmp_path / "0123abcd"
    shutil.copytree(tiny_run, commit)
    downloads["people/tiny", None] = commit
    before = sorted(commit.rglob("*"))
    opened = model_lib.open_model("people/tiny", None, None)
    assert (opened.name, opened.run, str(opened.reports)) == ("tiny", None, "tiny-report")
    assert run_folder.find("people/tiny")[0] == commit
    assert sorted(commit.rglob("*")) == before
