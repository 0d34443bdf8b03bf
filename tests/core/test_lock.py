"""A lock on a folder: one process at a time, gone with its process."""

import os
import subprocess
import sys

import pytest

from rahf.core import lock
from rahf.core.errors import FolderInUse


def test_one_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with lock.locked(folder, "trains") as alone:
        assert alone and os.listdir(folder) == [lock.LOCK_FILE]
        with pytest.raises(FolderInUse, match=f"new: another process .{os.getpid()}. trains there; wait until"):
            with lock.locked(folder, "trains"):
                pass
        with lock.locked(tmp_path / "other", "trains"):
            pass
    assert os.listdir(folder) == []
    with lock.locked(folder, "trains"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    program = (
        "import os, sys; from rahf.core import lock\nwith lock.locked(sys.argv[1], 'trains'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path]).returncode == -9
    assert os.listdir(tmp_path) == [lock.LOCK_FILE]
    with lock.locked(tmp_path, "trains") as alone:
        assert alone


def test_a_lock_file_that_was_replaced_while_it_was_opened(tmp_path, monkeypatch):
    """The holder removes the file between our opening and our locking it: the new file is locked instead."""
    flock, calls = lock.fcntl.flock, []

    def replaced(descriptor, operation):
        if not calls:
            (tmp_path / lock.LOCK_FILE).unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", replaced)
    with lock.locked(tmp_path, "trains"):
        assert len(calls) == 2 and (tmp_path / lock.LOCK_FILE).exists()


def test_where_there_are_no_locks_work_goes_on(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with lock.locked(tmp_path, "trains") as alone:
        assert not alone
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.locked(tmp_path, "trains") as alone:
        assert not alone
