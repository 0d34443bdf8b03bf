"""An exported file becomes a model directory again, with the same numbers, and training starts from it."""

import dataclasses

import numpy as np
import pytest

import rahf
from rahf import config as config_lib
from rahf.core import licenses, tree
from rahf.core.errors import PretrainedError
from rahf.critic.published.exported import import_exported
from rahf.training import label_counts


def test_the_shipped_critic_becomes_a_directory_with_its_parameters(tmp_path):
    folder = import_exported("lite", tmp_path / "start")
    file, again = rahf.load("lite"), rahf.load(folder)
    first, second = tree.flatten(file.params), tree.flatten(again.params)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[path], second[path]) for path in first)
    assert again.tokenizer.model == file.tokenizer.model
    assert not again.config.model.tag_head and again.outputs.label_names == file.outputs.label_names
    assert licenses.model_licenses(folder) == {file.model_id: file.provenance.weight_license}
    assert set(label_counts.read(folder)) == set(file.outputs.label_names)
    with pytest.raises(PretrainedError, match="exists already"):
        import_exported("lite", folder)


def test_the_config_that_trains_it_on_fits_it():
    """What `rahf train` checks of a start: every field of the network is the same."""
    config = config_lib.load("configs/critic/lite_finetune.py")
    shipped = rahf.load("lite").config.model
    assert config.model == dataclasses.replace(shipped, tag_head=False)
    assert config.start.model and config.data.tokenizer == "start" and not config.start.vision


def test_a_run_is_refused(tiny_run, tmp_path):
    with pytest.raises(PretrainedError, match="no exported file"):
        import_exported(tiny_run, tmp_path / "out")
