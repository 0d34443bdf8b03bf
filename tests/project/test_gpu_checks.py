"""What `make gpu` calls correct, and how it reads a profile."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.nn import functional, layers
from tests.helpers.benchmark_programs import ROOT


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_gradients_pass_by_their_worst_parameter():
    import gpu_checks

    exact = {"a": np.array([3.0, 4.0]), "b": np.array([1.0, 0.0]), "zero": np.array([1e-9, 0.0])}
    near = {"a": np.array([3.0, 4.5]), "b": np.array([1.0, 0.1]), "zero": np.array([5.0, 0.0])}
    compared = gpu_checks.compared(near, exact, of_outputs=0.01)
    assert compared["gradients"] == 2  # a gradient that is zero but for rounding is left out
    assert compared["gradient_errors_worst"] == {"a": 0.1, "b": 0.1} and compared["passed"]
    assert not gpu_checks.compared(near, exact, of_outputs=0.06)["passed"]
    collapsed = near | {"b": np.array([0.3, 0.0])}  # what a sum in bfloat16 makes of a bias
    compared = gpu_checks.compared(collapsed, exact, of_outputs=0.01)
    assert not compared["passed"] and list(compared["gradient_errors_worst"])[0] == "b"
    assert not gpu_checks.compared(near | {"b": np.array([math.nan, 0.0])}, exact, 0.01)["passed"]


def test_the_reference_is_the_transposed_convolution_that_the_layer_computes():
    import gpu_checks

    graphdef, params = functional.split(layers.UpConv3x3(3, 2, dtype=jnp.dtype("float32")))
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    expected = gpu_checks.transposed_convolution(params, x)
    assert expected.shape == (2, 10, 8, 2)
    np.testing.assert_allclose(functional.merge(graphdef, params)(x), expected, rtol=1e-5, atol=1e-5)


def test_attention_of_odd_lengths_passes():
    import gpu_checks

    errors = gpu_checks._attention_errors(2, 5, 11, heads=2, width=8, masked=True, biased=True, scale=1.0)
    assert set(errors) == {"output", "query", "key", "value", "bias"}
    assert 0 < max(errors.values()) <= gpu_checks._KERNEL


DEVICE = {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "/device:GPU:0"}}


def kernel(name, milliseconds, pid=7, **args):
    return {"ph": "X", "name": name, "pid": pid, "dur": 1e3 * milliseconds, "args": args}


def test_a_profile_by_part():
    import profiling

    events = [
        DEVICE,
        kernel("sm90_gemm", 4.0, hlo_op="gemm.1"),
        kernel("sm90_gemm", 6.0, hlo_op="gemm.1"),
        kernel("fprop", 10.0, hlo_op="conv.2"),
        kernel("memcpy", 1.0, kind="copy"),  # no instruction of the program
        kernel("python", 99.0, pid=1, hlo_op="gemm.1"),  # on the host
        {"ph": "X", "name": "step", "pid": 7, "dur": 5e4},  # sums up others
    ]
    names = {"gemm.1": "jit(step)/jvp(vit)/dot_general", "conv.2": "jit(step)/transpose(jvp(heatmap_heads))/conv"}
    summary = profiling.summary(events, 2, names)
    assert summary["ms_by_part"] == {"vit": 5.0, "heatmap_heads": 5.0, "other": 0.5}
    assert summary["ms_of_kernels"] == 10.5
    assert summary["longest_kernels"][0] | {"op": ""} == {"name": "gemm.1", "ms": 5.0, "per_step": 1.0, "op": ""}
    on_cpu = [event | {"pid": 1} for event in events[1:4]] + [kernel("python", 5.0, pid=1)]
    assert profiling.summary(on_cpu, 1, names)["ms_by_part"] == {"vit": 10.0, "heatmap_heads": 10.0}


def test_a_trace_is_cut_to_a_size_that_can_be_kept(monkeypatch):
    import gzip
    import json

    import profiling

    events = [kernel(f"{n}{np.random.default_rng(n).bytes(40).hex()}", float(n)) for n in range(64)]
    monkeypatch.setattr(profiling, "_LARGEST", 2000)
    data = profiling._shortened({"traceEvents": [DEVICE, *events]})
    kept = json.loads(gzip.decompress(data))["traceEvents"]
    assert len(data) <= 2000 and DEVICE in kept and kept[1]["dur"] == 63e3
