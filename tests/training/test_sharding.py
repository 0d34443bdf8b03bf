"""How devices share parameters and examples; 8 fake CPU devices in a process of their own."""

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rahf.config import Config, DataConfig, MeshConfig
from rahf.core.errors import ConfigError
from rahf.training import accumulate, sharding


def on(**sizes):
    """A stand-in for a mesh."""
    return types.SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1} | sizes)


# Rules


def test_one_device_holds_everything():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1} and mesh.axis_names == sharding.AXES
    assert sharding.parameter_spec("encoder/layer_0/query/kernel", (768, 768), mesh) == P(None, None)


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("encoder/layer_0/attention/query/kernel", (768, 1024), P("fsdp", "tensor")),
        ("encoder/layer_0/attention/out/kernel", (1024, 768), P("tensor", "fsdp")),
        ("vit/layer_3/wi/kernel", (768, 3072), P("fsdp", "tensor")),
        ("decoder/layer_1/ff/gate/kernel", (768, 2048), P("fsdp", "tensor")),
        ("decoder/layer_1/ff/wo/kernel", (2048, 768), P("tensor", "fsdp")),
        ("vit/layer_3/wi/bias", (32768,), P("tensor")),
        ("embedding", (32128, 768), P("tensor", "fsdp")),
        ("output", (768, 32128), P("fsdp", "tensor")),
        ("heatmap_misalignment/conv_0/kernel", (3, 3, 768, 384), P(None, None, "fsdp", None)),  # longest
        ("score_overall/dense_0/kernel", (65536, 2048), P("fsdp", None)),
        ("1/0/mu/encoder/layer_0/query/kernel", (768, 768), P("fsdp", "tensor")),  # moments like parameters
        ("1/0/nu/embedding", (32128, 768), P("tensor", "fsdp")),
        ("vit/layer_3/wi/bias", (3072,), P(None)),  # small ones are held whole
        ("encoder/layer_0/attention/query/kernel", (64, 64), P(None, None)),
        ("step", (), P()),
        ("embedding", (32129, 771), P(None, None)),  # not divisible
        ("embedding", (32129, 768), P(None, "fsdp")),
    ],
)
def test_where_a_parameter_lies(path, shape, wanted):
    assert sharding.parameter_spec(path, shape, on(fsdp=4, tensor=2)) == wanted


def test_axes_of_size_one_are_not_named():
    assert sharding.parameter_spec("embedding", (32128, 768), on(fsdp=8)) == P("fsdp", None)
    assert sharding.parameter_spec("embedding", (32128, 768), on(tensor=8)) == P("tensor", None)
    assert sharding.parameter_spec("embedding", (32128, 768), on(data=8)) == P(None, None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=2), r"'data': 2, 'fsdp': 1, 'tensor': 1\} needs 2 devices, there are 1; set one of"),
        (MeshConfig(fsdp=4), r"'data': -1, 'fsdp': 4, 'tensor': 1\} needs a multiple of 4 devices, there are 1; give"),
        (MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (MeshConfig(tensor=0), "positive numbers"),
        (MeshConfig(fsdp=-2), "positive numbers"),
    ],
)
def test_impossible_meshes(config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config, jax.devices()[:1])


def test_batches_that_devices_cannot_share():
    """Three devices and a batch of 8: refused by name before anything starts; evaluations fill up their batches."""
    mesh = types.SimpleNamespace(shape={"data": 3, "fsdp": 1, "tensor": 1})
    assert [sharding.rounded_up(size, mesh) for size in (1, 3, 8)] == [3, 3, 9]
    config = Config(data=DataConfig(batch_size=8), mesh=MeshConfig())
    with pytest.raises(
        ConfigError, match=r"data.batch_size 8: cannot be shared by the 3 devices.*multiple of 3, such as 9"
    ):
        accumulate.check(config, 3)
    accumulate.check(Config(data=DataConfig(batch_size=9)), 3)


def test_fitting_keeps_what_fits():
    eight, rest = MeshConfig(data=2, fsdp=4), MeshConfig(fsdp=4)
    assert sharding.fitting(eight, 8) == eight and sharding.fitting(eight, 4) == MeshConfig()
    assert sharding.fitting(rest, 8) == sharding.fitting(rest, 4) == rest
    assert sharding.fitting(rest, 6) == MeshConfig()


def test_description():
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = {"embedding": np.zeros((1000, 1500), np.float32)}
    assert sharding.describe(params, mesh) == "1 x cpu (data 1 fsdp 1 tensor 1), 1.50 M parameters"


# Eight devices


@pytest.fixture(scope="module")
def found(pytestconfig):
    """What tests/helpers/sharded_steps.py prints."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    script = pytestconfig.rootpath / "tests" / "helpers" / "sharded_steps.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["data", "fsdp", "tensor", "mixed"])
def test_loss_and_gradients_are_those_of_one_device(found, mesh):
    np.testing.assert_allclose(found[mesh]["loss"], found["single"]["loss"], rtol=0, atol=1e-5)
    distance, worst, count = found[mesh]["apart"]
    assert distance < 1e-5, worst
    assert count == len(found["single"]["placed"])


def test_steps_equal_those_of_one_device(found):
    wanted, sharded = np.array(found["single"]["steps"]), np.array(found["mixed"]["steps"])
    np.testing.assert_allclose(sharded[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(sharded[1], wanted[1], rtol=1e-4)  # after an update of every parameter
    assert wanted[1, 0] < 0.95 * wanted[0, 0]
    assert found["mixed"]["norm"] == pytest.approx(found["single"]["norm"], rel=1e-6)


def test_the_examples_of_all_devices_are_compared(found):
    """A contrastive loss: each of 8 devices holds one picture, which must meet the prompts of the others."""
    single, sharded = found["contrastive"]
    np.testing.assert_allclose(sharded, single, rtol=1e-5)
    assert min(single) > 0.1  # a picture that met its own prompt alone would have no loss


def test_the_mesh_has_no_part_in_the_draw_of_tasks(found):
    """Augmented prompt: the same tasks of the same examples, so the same loss and gradients."""
    single, sharded = found["augmented single"], found["augmented mixed"]
    np.testing.assert_allclose(sharded["loss"], single["loss"], rtol=0, atol=1e-5)
    distance, worst, count = sharded["apart"]
    assert distance < 1e-4, worst  # other draws differ by about 1; a key's bias has a gradient of rounding only
    assert count == len(single["placed"]) < len(found["single"]["placed"])
    assert max(sharded["params"]) < single["params"][0] / 2.5


def test_parameters_are_born_sharded(found):
    for part in ("params", "opt_state"):
        (whole,) = found["single"][part]
        assert found["data"][part] == [whole] * 8
        assert len(found["fsdp"][part]) == 8 and whole / 8 < max(found["fsdp"][part]) < whole / 4
        assert len(found["mixed"][part]) == 8 and max(found["mixed"][part]) < whole / 2.5
    for mesh, factor in (("fsdp", 8), ("mixed", 4), ("tensor", 8)):
        everywhere, here, largest_whole = found[mesh]["cut"]
        assert here * factor == everywhere or mesh == "mixed"  # there some are cut along one axis only
        assert mesh == "tensor" or largest_whole < 2**14
    placed = found["mixed"]["placed"]
    assert placed["embedding"] == str(P("tensor", "fsdp")) and placed["output"] == str(P("fsdp", "tensor"))
    assert placed["encoder/layer_0/attention/query/kernel"] == str(P("fsdp", "tensor"))
    assert found["fsdp"]["placed"]["embedding"] == str(P("fsdp", None))


@pytest.mark.parametrize("devices", ["8", "1", "4"])
def test_a_checkpoint_fits_every_mesh(found, devices):
    """Made on 8 devices, saved, restored on 1, saved, restored on 4."""
    at = found["wander"][devices]
    assert at["same"] and at["placed"] and at["checksums"] and at["position"] == {"examples": 8}


@pytest.mark.parametrize("devices", ["8", "4"])
def test_no_device_is_ever_given_more_than_its_share(found, devices):
    """Of what JAX was given to make arrays of, when the state was made (on 8 devices) and restored (on 4)."""
    at = found["wander"][devices]
    assert at["seen"] == 1.0 and at["cut"] >= 3 and at["larger"] == []


def test_checksums_do_not_depend_on_the_mesh(found):
    assert found["wander"]["by_devices"]


def test_examples_are_shared_out(found):
    runs = {name: run for name, run in found.items() if name not in ("wander", "contrastive")}
    assert {name: run["examples"] for name, run in runs.items()} == {
        "single": [8],
        "data": [1] * 8,
        "fsdp": [1] * 8,
        "tensor": [8] * 8,
        "mixed": [2] * 8,  # devices that share arithmetic see the same examples
        "augmented single": [8],
        "augmented mixed": [2] * 8,
    }
