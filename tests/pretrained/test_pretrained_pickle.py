"""PyTorch's `.bin` and `.pt`: read by the weights-only reader, never executed."""

import json
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reading PyTorch's format needs PyTorch: pip install rahf[torch]")

from rahf.core.errors import PretrainedError  # noqa: E402
from rahf.pretrained import files, vision  # noqa: E402
from tests.helpers import pretrained_maker as maker  # noqa: E402


def tensors(state):
    return {name: torch.from_numpy(value) for name, value in state.items()}


def load(folder):
    return vision.load_vision(folder, vision.published_vision(folder).vit, 32)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_equals_safetensors(tmp_path, zipped):
    """Both of PyTorch's formats: the zip archive and the older plain pickle."""
    expected = load(maker.save(tmp_path / "safe", maker.VIT, maker.vit_state()))
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(maker.VIT))
    torch.save(tensors(maker.vit_state()), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    actual = load(folder)
    np.testing.assert_array_equal(actual["embed"]["kernel"], expected["embed"]["kernel"])
    np.testing.assert_array_equal(actual["layer_1"]["wo"]["kernel"], expected["layer_1"]["wo"]["kernel"])


def test_bin_in_parts(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(maker.VIT))
    state, weight_map = tensors(maker.vit_state()), {}
    for number in (1, 2):
        mine = {name: value for i, (name, value) in enumerate(state.items()) if i % 2 == number - 1}
        torch.save(mine, tmp_path / f"pytorch_model-{number:05d}-of-00002.bin")
        weight_map.update(dict.fromkeys(mine, f"pytorch_model-{number:05d}-of-00002.bin"))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(load(tmp_path)["norm"]["bias"], maker.vit_state()["layernorm.bias"])
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(PretrainedError, match="pytorch_model-00001-of-00002.bin"):
        load(tmp_path)


class Payload:
    """Unpickling it would leave a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, zipped):
    file, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"a": torch.zeros(1), "b": Payload(str(mark))}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PretrainedError, match="evil.pt: refused by the weights-only reader, nothing in it was run"):
        files.open_torch(file)
    assert not mark.exists()
    torch.load(file, weights_only=False)  # the payload does work, so the refusal above means something
    assert mark.exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapped_state_dicts(tmp_path, wrap, prefix):
    file = tmp_path / "x.pt"
    torch.save(wrap({prefix + "a": torch.ones(2), prefix + "b": torch.ones(1, dtype=torch.bfloat16)}), file)
    tensors = files.open_torch(file)
    assert sorted(tensors) == ["a", "b"] and tensors["b"].load().dtype == np.float32
    assert tensors["a"].load().tolist() == [1.0, 1.0] and tensors["a"].file == "x.pt"


@pytest.mark.parametrize(
    "tree, words", [([torch.ones(1)], "found list"), ({}, "found dict"), ({"a": 3}, "a are not tensors")]
)
def test_files_that_are_no_state_dict(tmp_path, tree, words):
    torch.save(tree, tmp_path / "x.pt")
    with pytest.raises(PretrainedError, match=f"x.pt: .*{words}"):
        files.open_torch(tmp_path / "x.pt")


def test_damaged_files(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(500)}, file)
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(PretrainedError, match="x.pt: refused"):
        files.open_torch(file)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PretrainedError, match="git lfs pull"):
        files.open_torch(file)
