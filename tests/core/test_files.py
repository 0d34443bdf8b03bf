"""Atomic writes: the old content or the new one, nothing left behind after a failure; Git-LFS pointers."""

import errno
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import pytest

from rahf.core import files
from rahf.core.errors import ArgumentError, DatasetError, DiskFull, RahfError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 98765\n"


def names(folder):
    return sorted(os.listdir(folder))


def test_bytes_and_text_replace_the_old_content(tmp_path):
    file = tmp_path / "new" / "folder" / "a.txt"
    files.write_atomically(file, b"old")
    files.write_atomically(str(file), "nüw\n", sync=True)
    assert file.read_bytes() == b"n\xc3\xbcw\n"
    assert names(file.parent) == ["a.txt"]


def test_a_bare_name_is_written_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_atomically("a", b"x")
    assert names(tmp_path) == ["a"]


def test_the_longest_names_that_a_file_system_allows(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        files.write_atomically(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(errno.EIO, "Input/output error")])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, error):
    file, folder = tmp_path / "a", tmp_path / "folder"
    file.write_bytes(b"old")
    folder.mkdir()
    (folder / "b").write_bytes(b"old")
    with pytest.raises(type(error)) as raised, files.open_atomically(file) as stream:
        stream.write(b"new")
        raise error
    assert raised.value is error
    with pytest.raises(type(error)), files.replacing_folder(folder) as unfinished:
        (unfinished / "b").write_bytes(b"new")
        raise error
    assert names(tmp_path) == ["a", "folder"] and names(folder) == ["b"]
    assert file.read_bytes() == (folder / "b").read_bytes() == b"old"


@pytest.mark.parametrize("number, text", [(errno.ENOSPC, "No space left on device"), (errno.EDQUOT, "quota exceeded")])
def test_a_full_disk_is_named_with_file_and_remedy(tmp_path, number, text):
    expected = f"{tmp_path / 'a'}: the disk is full ({text}); free some space, or write to another place"
    with pytest.raises(DiskFull) as raised, files.open_atomically(tmp_path / "a") as stream:
        stream.write(b"new")
        raise OSError(number, text)
    assert str(raised.value) == expected and raised.value.errno == number
    assert isinstance(raised.value, RahfError) and isinstance(raised.value, OSError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == expected
    with pytest.raises(DiskFull, match="folder: the disk is full"), files.replacing_folder(tmp_path / "folder"):
        raise OSError(number, text)
    assert names(tmp_path) == []


def test_a_full_disk_met_by_another_library(tmp_path):
    """array_record, in C++, raises a RuntimeError with the system's text."""
    text = "write() failed: No space left on device; writing a.array_record; at byte 45056"
    with pytest.raises(DiskFull, match="folder: the disk is full .No space left on device.; free some space"):
        with files.replacing_folder(tmp_path / "folder"):
            raise RuntimeError(text)
    with pytest.raises(DatasetError, match="No space left"), files.replacing_folder(tmp_path / "folder"):
        raise DatasetError(text)  # says what to do already


def test_the_name_is_taken_only_when_all_is_written(tmp_path):
    with files.replacing(tmp_path / "a") as unfinished:
        unfinished.write_bytes(b"x")
        assert not (tmp_path / "a").exists() and unfinished.parent == tmp_path
    assert names(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "b"):
        pass  # the block forgot to write


def killed(code, *arguments):
    """Runs code in a process that kills itself with `kill()`."""
    start = "import os, signal, sys\nkill = lambda: os.kill(os.getpid(), signal.SIGKILL)\nfrom rahf.core import files\n"
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", start + code, *map(str, arguments)], cwd=root)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_between_write_and_rename_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"old")
    (tmp_path / ".b.12345678.unfinished").write_bytes(b"of another file")
    killed("os.replace = lambda *_: kill()\nfiles.write_atomically(sys.argv[1], b'new')", file)
    assert file.read_bytes() == b"old"
    left = [name for name in names(tmp_path) if name.startswith(".a.")]
    assert len(left) == 1 and left[0].endswith(files.UNFINISHED) and (tmp_path / left[0]).read_bytes() == b"new"
    files.remove_unfinished(file)
    assert names(tmp_path) == [".b.12345678.unfinished", "a"]


def test_a_folder_replaces_another_and_what_a_killed_process_left(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").touch()
    killed("with files.replacing_folder(sys.argv[1]) as new:\n (new / 'part').touch()\n kill()", folder)
    assert names(folder) == ["old"] and names(tmp_path) == [".data.unfinished", "data"]
    with files.replacing_folder(folder) as unfinished:
        assert names(unfinished) == []
        (unfinished / "new").touch()
    assert names(folder) == ["new"] and names(tmp_path) == ["data"]


def test_the_old_folder_returns_if_the_new_one_cannot_take_its_name(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileNotFoundError), files.replacing_folder(folder) as unfinished:
        unfinished.rmdir()
    assert names(folder) == ["old"] and names(tmp_path) == ["data"]


def test_git_lfs_pointers(tmp_path):
    file = tmp_path / "a.tfrecord"
    for content in ("", "version https://git", "data " + POINTER):
        file.write_text(content)
        assert not files.is_lfs_pointer(file)
        files.check_not_lfs_pointer(file)
    file.write_text(POINTER)
    assert files.is_lfs_pointer(file)
    with pytest.raises(
        DatasetError, match=r"a.tfrecord is a Git-LFS pointer.*98765 bytes \(sha256:12ab\).*git lfs pull"
    ):
        files.check_not_lfs_pointer(file)
    with pytest.raises(DatasetError, match="; ask Ann$"):
        files.check_not_lfs_pointer(file, "ask Ann")
    with pytest.raises(FileNotFoundError):
        files.is_lfs_pointer(tmp_path / "absent")


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new" / "deep", "remedy")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match=r"file/inside: cannot be written to \(Not a directory\); give another"):
        files.check_writable(tmp_path / "file" / "inside", "give another")

    def read_only(self, *_, **__):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(pathlib.Path, "touch", read_only)
    with pytest.raises(ArgumentError, match=r"cannot be written to \(Read-only file system\); give another"):
        files.check_writable(tmp_path, "give another")
