"""Where published data come from: a folder of parquet shards, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any, NamedTuple

from data_pipelines.store.layout import contents
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular

_PATTERNS = ("*.parquet", "README.md")  # of the files that are downloaded
_LICENSE = re.compile(r"^license:\s*(.+?)\s*$", re.MULTILINE)
_LICENSE_LIST = re.compile(r"^license:\s*\n((?:\s*-\s*.+\n)+)", re.MULTILINE)
NOT_STATED = "not stated"


class DatasetSource(NamedTuple):
    """Published data on this machine, and what their data sheet says of their origin."""

    folder: pathlib.Path  # parquet shards at any depth
    name: str  # "owner/name" on the hub, or the folder
    revision: str  # commit; "" for a folder
    license: str  # as the card says; NOT_STATED if there is none
    notes: tuple[str, ...] = ()  # what the user should know


def open_source(hub: str | None, folder: str | os.PathLike | None, revision: str | None = None) -> DatasetSource:
    """The data that a user names.

    Args:
      hub: "owner/name" of a dataset on the hub.
      folder: a folder with the same parquet files.
      revision: of `hub`: branch, tag or commit; None: its main branch.

    Raises:
      DatasetError: none of the two or both, no such folder, or a dataset that can neither be downloaded nor found in
        the cache.
    """
    if (hub is None) == (folder is None):
        raise DatasetError("give --hub OWNER/NAME or --folder DIR, one of the two")
    if folder is None:
        return from_hub(hub, revision)
    if revision is not None:
        raise DatasetError(f"--revision {revision} belongs to --hub; a folder has what it has")
    path = pathlib.Path(folder)
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise DatasetError(f"--folder {path} {state}; expected a folder with parquet files")
    return DatasetSource(path, os.fspath(folder), "", stated_license(path))


def from_hub(repository: str, revision: str | None = None) -> DatasetSource:
    """Downloads a dataset, as far as the hub's cache does not have it; an interrupted download goes on.

    Raises:
      DatasetError: gated, not there, or not reachable and not in the cache.
    """
    import huggingface_hub  # heavy, and only needed here

    options: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(_PATTERNS)}
    notes: tuple[str, ...] = ()
    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(repository, **options))
    except Exception as error:  # errors of the hub and of the network library that it uses
        refusal = _refusal(error, repository, revision)
        if refusal is not None:
            raise refusal from error
        try:
            folder = pathlib.Path(huggingface_hub.snapshot_download(repository, local_files_only=True, **options))
        except Exception:  # noqa: BLE001 - whatever it is, the first error says why the network did not serve
            raise DatasetError(
                f"--hub {repository}: the Hugging Face hub cannot be reached, and its cache on this machine does not "
                f"have the dataset ({_first_line(error)}). Without a network, run `hf download --repo-type dataset "
                f"{repository}` where there is one and copy its cache here (HF_HOME), or give --folder DIR"
            ) from error
        notes = (f"the hub could not be reached ({_first_line(error)}); its cache was used, as complete as that is",)
    commit = folder.name if folder.parent.name == "snapshots" else revision or ""
    return DatasetSource(folder, repository, commit, stated_license(folder), notes)


def stated_license(folder: pathlib.Path) -> str:
    """The licence that the card of a dataset states, as it is written there; NOT_STATED if there is none."""
    try:
        text = read_regular(folder / "README.md").decode(errors="replace")
    except OSError:
        return NOT_STATED
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    if several := _LICENSE_LIST.search(head + "\n"):
        return ", ".join(line.strip(" -") for line in several[1].splitlines())
    single = _LICENSE.search(head)
    return single[1].strip("'\"") if single else NOT_STATED


def shard_files(source: DatasetSource) -> list[pathlib.Path]:
    """Every parquet file of a source, in a fixed order.

    Raises:
      DatasetError: there is none.
    """
    files = sorted(
        pathlib.Path(root, name)
        for root, _, names in os.walk(source.folder, followlinks=True)
        for name in names
        if name.endswith(".parquet") and not name.startswith(".")
    )
    if not files:
        raise DatasetError(f"{source.name} has no parquet file: {contents(source.folder)}")
    return files


def _refusal(error: Exception, repository: str, revision: str | None) -> DatasetError | None:
    """The message about an answer of the hub; None if it was not reached."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return DatasetError(
            f"--hub {repository} is gated: accept its conditions on https://huggingface.co/datasets/{repository}, then "
            "log in on this machine with `hf auth login`"
        )
    if "RevisionNotFoundError" in kinds:
        return DatasetError(
            f"--hub {repository} has no revision {revision!r}; give a branch, tag or commit that it has"
        )
    if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
        return DatasetError(
            f"--hub {repository}: the hub has no such dataset; check the name (owner/name). A private one needs "
            "`hf auth login`"
        )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
