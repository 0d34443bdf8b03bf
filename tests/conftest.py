"""Shared fixtures. Everything heavy is made once per test run."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# One compilation cache for all tests and the processes they start; and one thread pool that fits.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the repository; a user's clone does not have it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data" / "rehearsal").is_dir():
        pytest.skip("the reference data (../shared) is not beside this clone")
    return folder
