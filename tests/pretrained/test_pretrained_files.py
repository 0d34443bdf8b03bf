"""Checkpoint folders: found locally or in the hub's cache, read whole or in parts, refused when damaged."""

import json
import struct
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from rahf.core.errors import PretrainedError
from rahf.pretrained import files, source
from rahf.pretrained.source import WeightsSource
from tests.helpers import pretrained_maker as maker

STATE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(2, np.float32),
    "c": np.zeros(1, np.float32),
}


def read(folder):
    return {name: stored.load() for name, stored in files.open_folder(source.locate(folder)).items()}


def test_a_folder_is_taken_as_it_is(tmp_path):
    weights = source.locate(tmp_path)
    assert weights == WeightsSource(tmp_path, str(tmp_path), None) and source.locate(weights) is weights
    assert weights.record() == {"name": str(tmp_path), "revision": None}


@pytest.mark.parametrize("parts", [1, 3])
def test_weights_in_one_file_or_several(tmp_path, parts):
    tensors = read(maker.save(tmp_path, {}, STATE, parts))
    assert sorted(tensors) == ["a", "b", "c"]
    for name, value in STATE.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_half_precision_becomes_float32(tmp_path):
    save_file({"h": np.array([1.5, -2.0], np.float16), "n": np.array([7])}, tmp_path / "model.safetensors")
    tensors = read(tmp_path)
    assert tensors["h"].dtype == np.float32 and tensors["h"].tolist() == [1.5, -2.0]
    assert tensors["n"].dtype == np.int64


def test_bfloat16(tmp_path):
    """Written by hand: 1.0 is 0x3F80, -2.5 is 0xC020; a second tensor stands before it in the file."""
    header = {
        "first": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "half": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [4, 8]},
    }
    text = json.dumps(header).encode()
    body = struct.pack("<f", 3.0) + struct.pack("<HH", 0x3F80, 0xC020)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    tensors = read(tmp_path)
    assert tensors["half"].dtype == np.float32 and tensors["half"].tolist() == [[1.0], [-2.5]]
    assert tensors["first"].tolist() == [3.0]


def test_a_missing_part_is_named(tmp_path):
    maker.save(tmp_path, {}, STATE, parts=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        PretrainedError,
        match=r"1 of 2 files are missing: model-00002-of-00002.safetensors.* 1 of 3 tensors, such as b",
    ):
        read(tmp_path)


def test_parts_without_an_index(tmp_path):
    maker.save(tmp_path, {}, STATE, parts=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(PretrainedError, match="model-00001-of-00002.safetensors is one part of several, and the index"):
        read(tmp_path)


def test_a_part_that_lacks_a_promised_tensor(tmp_path):
    maker.save(tmp_path, {}, STATE, parts=2)
    save_file({"c": STATE["c"]}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(PretrainedError, match="model-00001-of-00002.safetensors: lacks 1 tensors .* promises: a"):
        read(tmp_path)


def test_a_tensor_in_two_parts(tmp_path):
    maker.save(tmp_path, {}, STATE, parts=2)
    save_file({"b": STATE["b"], "a": STATE["a"]}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(PretrainedError, match="another part holds too: a"):
        read(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    save_file(STATE, tmp_path / "secret.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(PretrainedError, match="not a file of the same folder"):
        read(inner)


def test_a_truncated_download(tmp_path):
    file = maker.save(tmp_path, {}, STATE) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(PretrainedError, match="model.safetensors: not a complete safetensors file .*download it again"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(PretrainedError, match=f"{name}.*git lfs pull"):
        source.read_config(source.locate(tmp_path), ("t5",)) if name == "config.json" else read(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "README.md").write_text("")
    with pytest.raises(PretrainedError, match="no weights .*found README.md"):
        read(tmp_path)


def test_names_that_are_nothing(tmp_path):
    file = tmp_path / "x.bin"
    file.write_bytes(b"")
    for name in (file, tmp_path / "absent", "no/such/depth"):
        with pytest.raises(PretrainedError, match="expected a folder with config.json"):
            source.locate(name)
    with pytest.raises(PretrainedError, match="for hub ids only"):
        source.locate(tmp_path, revision="main")


def test_another_family_is_refused(tmp_path):
    maker.save(tmp_path, {"model_type": "bert"}, STATE)
    with pytest.raises(PretrainedError, match="config.json: model_type is 'bert', expected 'vit'"):
        source.read_config(source.locate(tmp_path), ("vit",))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as the hub's library lays it out, holding one repository, with the network switched off."""
    from huggingface_hub import constants

    repo = tmp_path / "hub" / "models--owner--tower"
    maker.save(repo / "snapshots" / COMMIT, {"model_type": "vit"}, STATE)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_hub_works_offline_and_its_revision_is_recorded(hub_cache):
    weights = source.locate("owner/tower")
    assert weights.record() == {"name": "owner/tower", "revision": COMMIT}
    assert sorted(files.open_folder(weights)) == ["a", "b", "c"]
    assert source.locate("owner/tower", COMMIT).folder == weights.folder


def test_a_cache_serves_a_machine_that_lost_its_network(hub_cache, monkeypatch):
    """Nothing is said to the library: it finds out by itself that no name can be looked up."""
    import socket

    from huggingface_hub import constants

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert source.locate("owner/tower").revision == COMMIT
    assert source.locate("owner/tower", "main").revision == COMMIT
    with pytest.raises(PretrainedError, match="owner/other: not a folder .*\n.*\n?.*run `hf download owner/other`"):
        source.locate("owner/other")


def test_a_repository_that_is_not_in_the_cache(hub_cache):
    with pytest.raises(PretrainedError, match="owner/other at revision v2: not a folder here"):
        source.locate("owner/other", "v2")


def test_bin_is_fetched_only_where_there_is_no_safetensors(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    folder = tmp_path / COMMIT
    folder.mkdir()

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source.locate("owner/tower")
    assert len(asked) == 2 and "pytorch_model.bin" not in asked[0] and "pytorch_model.bin" in asked[1]
    save_file(STATE, folder / "model.safetensors")
    source.locate("owner/tower")
    assert len(asked) == 3


def test_bin_without_pytorch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(PretrainedError, match=r"pytorch_model.bin: .*pip install rahf\[torch\]"):
        read(tmp_path)


def test_an_old_pytorch_is_not_trusted(tmp_path, monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    with pytest.raises(PretrainedError, match="PyTorch 2.5.1.* cannot read it safely"):
        files.open_torch(tmp_path / "pytorch_model.bin")
