"""The fixed network of a perceptual loss: a VGG from a file, or the tower of the shipped critic."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rahf.core.errors import ArgumentError, PretrainedError
from rahf.motion import features

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Five stages of one convolution, of which the loss takes four."""
    rng, state = np.random.default_rng(0), {}
    for stage in range(5):
        state[f"features.{3 * stage}.weight"] = rng.normal(size=(4, 4 if stage else 3, 3, 3)).astype(np.float32)
        state[f"features.{3 * stage}.bias"] = rng.normal(size=4).astype(np.float32)
    path = tmp_path_factory.mktemp("vgg") / "vgg5-tiny.safetensors"
    save_file(state, path)
    return path


def reference(state, picture):
    """The maps of a picture [h,w,3], by loops over the kernel."""
    x, maps = (picture - MEAN) / STD, []
    for stage in range(4):
        weight, bias = state["features"][str(3 * stage)]["kernel"], state["features"][str(3 * stage)]["bias"]
        if stage:
            h, w = x.shape[0] // 2, x.shape[1] // 2
            x = x[: 2 * h, : 2 * w].reshape(h, 2, w, 2, -1).max((1, 3))
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        shifts = [(i, j) for i in range(3) for j in range(3)]
        x = np.maximum(
            sum(padded[i : i + x.shape[0], j : j + x.shape[1]] @ np.asarray(weight[i, j]) for i, j in shifts) + bias, 0
        )
        maps.append(x)
    return maps


def test_the_difference_is_a_share_of_the_maps(vgg_file):
    """Against loops; nothing between equal pictures, and a gradient in the first one only."""
    network, rng = features.load(vgg_file), np.random.default_rng(1)
    assert network.name == "VGG vgg5-tiny.safetensors" and [*network.params["features"]] == ["0", "3", "6", "9"]
    one, other = rng.random((2, 2, 16, 17, 3)).astype(np.float32)

    @jax.jit
    def both(one, other):
        gradients = jax.grad(lambda a, b: network.difference(a, b).sum(), argnums=(0, 1))(one, other)
        return network.difference(one, other), gradients

    values, (to_one, to_other) = both(one, other)
    for number in range(2):
        maps = [reference(network.params, picture[number]) for picture in (one, other)]
        expected = np.mean([np.abs(a - b).mean() / np.abs(b).mean() for a, b in zip(*maps)])
        assert float(values[number]) == pytest.approx(expected, rel=1e-4)
    assert np.abs(to_one).max() > 0 and np.abs(to_other).max() == 0
    assert np.abs(both(one, one)[0]).max() == 0


def test_the_shipped_critics_tower_stands_in():
    network = features.load("lite")
    assert network.name == "EfficientNet-Lite tower of lite"
    shapes = jax.eval_shape(network.maps, jax.ShapeDtypeStruct((1, 40, 64, 3), np.float32))
    sizes = [shape.shape[1:] for shape in shapes]
    assert sizes == [(20, 32, 16), (10, 16, 24), (5, 8, 40), (3, 4, 112)]


def test_what_is_no_such_network(tiny_run, tmp_path):
    with pytest.raises(ArgumentError, match='a critic with the tower "efficientnet", as "lite"'):
        features.load(tiny_run)
    with pytest.raises(PretrainedError, match="none.pth: no such file"):
        features.load(tmp_path / "none.pth")
