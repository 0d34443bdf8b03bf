"""The public names of rahf: each is there, at its place, and imported when it is used."""

import importlib
import subprocess
import sys
import warnings

import pytest

import rahf
from rahf.core import former_names
from rahf.core.lazy import attach

NAMES = ["Config", "Critic", "Feedback", "RahfError", "__version__", "load", "train"]


def test_every_public_name_is_there():
    assert sorted(rahf.__all__) == NAMES
    namespace: dict = {}
    exec("from rahf import *", namespace)
    for name in NAMES:
        assert namespace[name] is getattr(rahf, name)
        assert name == "__version__" or namespace[name].__name__ == name


def test_the_face_loads_nothing_heavy():
    code = (
        "import sys, rahf; assert rahf.RahfError and rahf.Config and rahf.load and rahf.train; "
        "print({'jax', 'flax', 'orbax', 'grain', 'torch', 'transformers', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_packages_need_no_import_of_their_own():
    code = "import rahf; print(rahf.steer.repair.__module__, rahf.diffusion.load.__module__)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output == "rahf.steer.repaint rahf.diffusion.loading\n"


def test_train_can_be_called_after_its_former_module_was_imported(monkeypatch):
    """`import rahf.train.loop` sets the attribute `train` of the package to a module."""
    from rahf import registry

    monkeypatch.setattr(registry, "train", lambda config: ("trained", config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("rahf.train.loop")
    try:
        assert rahf.train is sys.modules["rahf.train"] and rahf.train(1) == ("trained", 1)
    finally:
        for name in former_names.MODULES.keys() & sys.modules.keys():
            del sys.modules[name]
        del rahf.train


def test_names_are_imported_once_and_others_refused():
    name = "tests.core.test_face"
    getattr_, dir_, names = attach(name, {"NAMES": __name__, "absent": "rahf.core.version"})
    assert names == ["NAMES", "absent"] and {"NAMES", "absent", "pytest"} <= {*dir_()}
    assert getattr_("NAMES") is NAMES
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        getattr_("other")
    with pytest.raises(AttributeError, match="absent"):
        getattr_("absent")
