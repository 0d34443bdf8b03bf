"""Datasets of the hub: downloads, caches, refusals. Nothing is downloaded."""

import huggingface_hub
import pytest

from data_pipelines.prepare import dataset_source
from rahf.core.errors import DatasetError


class GatedRepoError(Exception):
    """Named as the hub's own, whose constructor needs an answer of the network."""


class RevisionNotFoundError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


def hub(monkeypatch, error=None, cached=None, calls=None):
    def snapshot_download(repository, *, local_files_only=False, **options):
        if calls is not None:
            calls.append((repository, local_files_only, options))
        if error is not None and not (local_files_only and cached):
            raise error
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def snapshot(tmp_path):
    folder = tmp_path / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Title\n")
    return folder


def test_a_download(tmp_path, monkeypatch):
    calls = []
    hub(monkeypatch, cached=snapshot(tmp_path), calls=calls)
    source = dataset_source.open_source("owner/name", None, "main")
    assert (source.revision, source.license, source.name) == ("0123abcd", "apache-2.0", "owner/name")
    (call,) = calls
    assert call[2]["repo_type"] == "dataset" and call[2]["revision"] == "main"


def test_without_a_network(tmp_path, monkeypatch):
    hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(DatasetError, match="cannot be reached.*cache.*no route.*hf download"):
        dataset_source.open_source("owner/name", None)
    hub(monkeypatch, ConnectionError("no route"), cached=snapshot(tmp_path))
    source = dataset_source.open_source("owner/name", None)
    assert source.revision == "0123abcd" and "could not be reached (no route)" in source.notes[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("403"), "is gated.*hf auth login"),
        (RevisionNotFoundError("404"), "no revision 'v9'"),
        (RepositoryNotFoundError("404"), "no such dataset.*owner/name"),
    ],
)
def test_refusals(monkeypatch, error, message):
    hub(monkeypatch, error)
    with pytest.raises(DatasetError, match=message):
        dataset_source.from_hub("owner/name", "v9")


def test_folders(tmp_path):
    with pytest.raises(DatasetError, match="one of the two"):
        dataset_source.open_source(None, None)
    with pytest.raises(DatasetError, match="does not exist"):
        dataset_source.open_source(None, tmp_path / "none")
    with pytest.raises(DatasetError, match="belongs to --hub"):
        dataset_source.open_source(None, tmp_path, "main")
    (tmp_path / "README.md").write_text("---\nlicense:\n- cc-by-4.0\n- mit\n---\n")
    source = dataset_source.open_source(None, tmp_path)
    assert source.license == "cc-by-4.0, mit"
    with pytest.raises(DatasetError, match="no parquet file.*README.md"):
        dataset_source.shard_files(source)
