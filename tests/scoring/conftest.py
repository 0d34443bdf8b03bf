"""Fixtures of the tests of scoring at scale."""

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Files need not survive a power cut here, and a busy disk takes a tenth of a second for each."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
