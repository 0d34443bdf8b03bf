"""Recomputed and scanned layers: the same results and parameters, less memory; bfloat16 where it is meant to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from rahf.config import CriticConfig, HeatmapHeadConfig, LossConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.critic import losses
from rahf.critic.networks import heads
from rahf.critic.networks.build import build
from rahf.nn import execution as execution_lib
from rahf.nn import functional, t5, vit
from rahf.nn.execution import Execution, full_precision, remat_part, run_layers
from tests.helpers.model_maker import PLAIN, compiled, fake, made

F32 = jnp.dtype("float32")
VIT = ViTConfig(patch_size=4, width=16, depth=2, heads=2, mlp_width=32, stem=(4,), dropout=0.2)
T5 = T5Config(8, 16, head_width=8, heads=2, mlp_width=16, decoder_layers=2, dropout=0.2)
HEAD = HeatmapHeadConfig(conv_widths=(4,), up_widths=(4, 4))
KEY = jax.random.key(3, impl="unsafe_rbg")  # compiles in a fraction of the time


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


PARTS = {
    "vit": (lambda e: vit.ViT(VIT, 16, dtype=F32, execution=e), (normal(2, 16, 16, 3), KEY)),
    "decoder": (
        lambda e: t5.Decoder(T5, dtype=F32, execution=e),
        (normal(2, 5, 16), normal(2, 6, 16), np.arange(6) < np.array([[6], [4]]), KEY),
    ),
    "head": (lambda e: heads.HeatmapHead(16, 16, HEAD, grid=4, dtype=F32, execution=e), (normal(2, 4, 4, 16),)),
}


def value_and_gradients(part, execution):
    """Of a sum over what a part gives, with respect to parameters and first input."""
    build_part, inputs = PARTS[part]
    graphdef, _ = functional.abstract(lambda: build_part(execution))
    flat = functional.flatten(functional.init(lambda: build_part(Execution()), 0))
    stream = np.random.default_rng(2)
    noisy = {k: np.asarray(v) + 0.1 * stream.standard_normal(v.shape, np.float32) for k, v in flat.items()}

    def value(params, x, *rest):
        return jnp.square(functional.merge(graphdef, params)(x, *rest)).mean()

    actual = jax.jit(jax.value_and_grad(value, (0, 1)))(functional.unflatten(noisy), *inputs)
    return jax.device_get(actual)


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_the_same(part):
    """Of blocks that draw dropout, too: what is computed again must draw the same."""
    value, gradients = value_and_gradients(part, Execution())
    ways = [Execution(remat="dots"), Execution(remat="block"), Execution(remat="full")]
    if part != "head":  # its stages differ in shape
        ways += [Execution(scan_layers=True), Execution(remat="dots", scan_layers=True)]
    for execution in ways:
        again, actual = value_and_gradients(part, execution)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max() + 1e-7, err_msg=str(execution))


def test_the_whole_network():
    """All of it recomputed in scanned layers; parameters have the names and shapes that they always have."""
    config = dataclasses.replace(PLAIN, remat="full", scan_layers=True)
    graphdef, params = made(PLAIN)
    assert not functional.parameter_differences(functional.abstract(build(config))[1], params)
    forward = jax.jit(lambda p, b: functional.merge(functional.abstract(build(config))[0], p)(b))
    expected = jax.tree.leaves(compiled(PLAIN)(params, fake())[0])
    for a, b in zip(jax.tree.leaves(forward(params, fake())), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    program = str(jax.make_jaxpr(lambda p, b: functional.merge(graphdef, p)(b))(params, fake()))
    assert "checkpoint" not in program and "scan" not in program  # none by default


def test_memory_falls():
    """XLA for CPUs undoes recomputation outside of loops, so it is seen in scanned layers."""
    config = dataclasses.replace(VIT, depth=4, width=32, mlp_width=128, dropout=0.0, stem=())

    def temporaries(remat):
        execution = Execution(remat=remat, scan_layers=True)
        graphdef, params = functional.abstract(lambda: vit.ViT(config, 48, dtype=F32, execution=execution))
        value = lambda p, x: jnp.square(functional.merge(graphdef, p)(x)).sum()
        shape = jax.ShapeDtypeStruct((4, 48, 48, 3), np.float32)
        return jax.jit(jax.grad(value)).lower(params, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("block") < 0.4 * temporaries("none")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                    yield from equations(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def residuals(remat):
    """Shapes and dtypes of what a head keeps for its gradient, apart from its parameters and input."""
    build_part, inputs = PARTS["head"]
    execution = Execution(remat=remat)
    graphdef, params = functional.abstract(lambda: build_part(execution))
    forward = lambda p, x: remat_part(execution, functional.merge(graphdef, p))(x)
    run = lambda p, x: jax.vjp(forward, p, x)[1]
    kept = jax.tree.leaves(jax.eval_shape(run, params, inputs[0]))
    given = [leaf.shape for leaf in jax.tree.leaves(params)]
    return [leaf for leaf in kept if leaf.shape not in given and leaf.ndim == 4]


def test_what_a_head_keeps():
    """`dots`: its convolutions' results; `block`: what goes into each of its four blocks; `full`: the input."""
    sizes = {remat: sum(leaf.size for leaf in residuals(remat)) for remat in ("none", "dots", "block", "full")}
    # Two images: input 4x4x16; blocks of 4 channels begin at sides 4, 8 and 16.
    assert sizes["full"] == 2 * 4 * 4 * 16
    assert sizes["block"] == 2 * (4 * 4 * 16 + (4 * 4 + 8 * 8 + 16 * 16) * 4)
    assert sizes["none"] > 2 * sizes["dots"] > 2 * sizes["block"]


def test_bfloat16_computes_in_bfloat16():
    """Products and convolutions read bfloat16 but for the last layer of scores; softmax, norms and loss are float32."""
    config = CriticConfig(
        image_size=16,
        vit=dataclasses.replace(VIT, depth=1, dropout=0.0),
        t5=T5Config(48, 16, head_width=8, heads=2, mlp_width=16, encoder_layers=1, decoder_layers=1),
        heatmap_head=HeatmapHeadConfig(conv_widths=(), up_widths=(8, 4)),
        score_head=ScoreHeadConfig(conv_widths=(8,), dense_widths=(8,)),
        compute_dtype="bfloat16",
    )
    graphdef, params = functional.abstract(build(config))

    def loss(params):
        return losses.total(LossConfig(), functional.merge(graphdef, params)(fake()), fake())[0]

    every = list(equations(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))
    products = [e for e in every if e.primitive.name in ("dot_general", "conv_general_dilated")]
    wide = [e for e in products if _reads(e) == {"float32"}]
    # Logits of scores, and gradients of attention's probabilities.
    assert not [e for e in wide if e.primitive.name == "conv_general_dilated"]
    assert 4 * len(wide) < len(products)
    forward = equations(jax.make_jaxpr(loss)(params).jaxpr)
    sensitive = [e for e in forward if e.primitive.name in ("exp", "log", "rsqrt", "log1p", "logistic")]
    assert len(sensitive) > 20 and {_dtype(v) for e in sensitive for v in e.invars} == {"float32"}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss), params)))


def _dtype(value):
    return str(value.aval.dtype)


def _reads(equation):
    return {_dtype(value) for value in equation.invars[:2]}


def test_blocks_of_one_are_not_scanned():
    execution = Execution(scan_layers=True)
    program = jax.make_jaxpr(lambda x: run_layers([_Add()], lambda b, x, n: b(x), x, execution, F32))(1.0)
    assert "scan" not in str(program)


class _Add:
    def __call__(self, x):
        return x + 1


def test_predictions_in_float32_are_float32_on_every_device():
    """By default a GPU multiplies float32 in TF32, and a TPU in bfloat16; this holds for the gradient, too."""

    def function(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (y.reshape(1, -1) @ y.reshape(-1, 1)).sum()

    shapes = [jax.ShapeDtypeStruct(shape, F32) for shape in ((1, 4, 4, 2), (3, 3, 2, 2))]

    def precisions(function):
        text = jax.jit(jax.value_and_grad(function)).lower(*shapes).as_text()
        lines = [line for line in text.splitlines() if "dot_general" in line or "convolution(" in line]
        assert len(lines) >= 4
        return {"HIGHEST" in line for line in lines}

    assert precisions(function) == {False}
    assert precisions(full_precision(function, "float32")) == {True}
    assert full_precision(function, "bfloat16") is function


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_wide_convolutions_are_compiled_with_an_option(monkeypatch):
    """The same numbers; inside of another program, for narrow networks and without the option it is plain jit."""
    x, kernel = normal(1, 4, 4, 8), normal(3, 3, 8, 8)
    expected = jax.jit(convolved)(x, kernel)
    wide = execution_lib.jit_convolving(convolved, 256)
    assert execution_lib._knows_eigen_convolutions() != hasattr(wide, "lower")
    np.testing.assert_allclose(wide(x, kernel), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: wide(x, kernel))(x), expected, atol=1e-5)
    assert hasattr(execution_lib.jit_convolving(convolved, 255), "lower")
    monkeypatch.setattr(execution_lib, "_EIGEN_CONVOLUTIONS", {"xla_cpu_of_another_version": "1"})
    execution_lib._knows_eigen_convolutions.cache_clear()
    try:
        assert not execution_lib._knows_eigen_convolutions()
        assert hasattr(execution_lib.jit_convolving(convolved, 256), "lower")
    finally:
        execution_lib._knows_eigen_convolutions.cache_clear()
