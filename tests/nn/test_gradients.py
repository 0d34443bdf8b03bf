"""What a CPU computes in another order gives the same values and gradients; other devices get JAX's own."""

import contextvars

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rahf.config import LossConfig
from rahf.critic import losses
from rahf.critic.networks.build import build
from rahf.nn import convnext, efficientnet, execution, functional, gradients, layers, resnet
from rahf.nn.attention import attention
from tests.helpers.model_maker import SMALLEST, fake

rng = np.random.default_rng


@pytest.fixture(autouse=True)
def in_a_training_step():
    with gradients.of_training():
        yield


def normal(*shape, seed=0):
    return jnp.asarray(rng(seed).standard_normal(shape, np.float32))


def close(actual, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max())))


def with_gradients(function, *inputs):
    """Values, and gradients of a sum with random weights."""
    weights = normal(*jax.eval_shape(function, *inputs).shape, seed=9)
    value = lambda *x: (weights * function(*x)).sum()
    return jax.jit(lambda *x: (function(*x), jax.grad(value, tuple(range(len(x))))(*x)))(*inputs)


@pytest.mark.parametrize(
    ("leading", "inputs", "outputs"), [((5, 7), 3, 11), ((13,), 11, 3), ((2, 3, 5), 4, 4), ((1,), 1, 1)]
)
def test_products(leading, inputs, outputs):
    x, kernel = normal(*leading, inputs), normal(inputs, outputs, seed=1)
    close(with_gradients(gradients.product, x, kernel), with_gradients(jnp.dot, x, kernel))


def test_a_gradient_by_hand():
    """Two rows: dL/dW = Σ xᵀ · dL/dy, dL/dx = dL/dy · Wᵀ."""
    x, kernel = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[5.0], [6.0]])
    of_x, of_kernel = jax.vjp(gradients.product, x, kernel)[1](jnp.asarray([[1.0], [10.0]]))
    close((of_x, of_kernel), (np.array([[5.0, 6.0], [50.0, 60.0]]), np.array([[31.0], [42.0]])))


CONVOLUTIONS = [
    ((6, 7), (3, 3), 1, "SAME"),
    ((6, 7), (3, 3), 2, "SAME"),
    ((7, 5), (3, 3), 2, ((1, 1), (1, 1))),
    ((8, 6), (3, 3), 2, ((0, 1), (0, 1))),
    ((9, 8), (4, 4), 4, "VALID"),  # a row that no output sees
    ((5, 4), (2, 2), 1, ((0, 1), (0, 1))),
    ((11, 9), (7, 7), 2, ((3, 3), (3, 3))),
    ((5, 6), (1, 3), (1, 2), "VALID"),
    ((4, 4), (3, 3), 1, ((3, 3), (0, 0))),  # more zeros than the filter reaches over: JAX's own gradient
]


def jax_convolution(x, kernel, stride, padding):
    strides = (stride, stride) if isinstance(stride, int) else stride
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CONVOLUTIONS)
def test_convolutions(size, kernel, stride, padding):
    x, kernel = normal(2, *size, 3), normal(*kernel, 3, 5, seed=1)
    own = with_gradients(lambda x, kernel: gradients.convolution(x, kernel, stride, padding), x, kernel)
    close(own, with_gradients(lambda x, kernel: jax_convolution(x, kernel, stride, padding), x, kernel))


def orders_of_convolutions(jaxpr):
    """The order of axes of each convolution, those of inner programs, too."""
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.conv_general_dilated_p:
            yield equation.params["dimension_numbers"]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from orders_of_convolutions(value.jaxpr)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CONVOLUTIONS[:-1])
def test_gradients_of_convolutions_in_a_loop_keep_the_order_of_axes(size, kernel, stride, padding):
    """XLA's CPU backend has fast kernels for this order only, and brings others into it only outside of loops."""
    x, kernel = normal(2, *size, 3), normal(*kernel, 3, 5, seed=1)

    def loss(x, kernel):
        body = lambda x, _: (x + gradients.convolution(x, kernel, stride, padding).sum(), None)
        return jax.lax.scan(body, x, None, length=2)[0].sum()

    orders = list(orders_of_convolutions(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel).jaxpr))
    expected = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    assert len(orders) == 3 and set(orders) == {expected}


def test_every_layer_of_a_network_gets_them():
    """Layers of all towers; depthwise ones have a gradient of their own."""
    for layer, channels in (
        (layers.Conv3x3(3, 4, stride=2, dtype=jnp.float32), 3),
        (layers.UpConv3x3(3, 4, dtype=jnp.float32), 3),
        (efficientnet.StemAffine(4, dtype=jnp.float32), 3),
        (convnext.Patches(3, 4, 2, dtype=jnp.float32), 3),
        (resnet.ConvAffine(3, 4, 3, dtype=jnp.float32), 3),
    ):
        graphdef, params = nnx.split(layer)
        loss = lambda params, x, graphdef=graphdef: nnx.merge(graphdef, params)(x).sum()
        x = normal(1, 8, 8, channels)
        orders = list(orders_of_convolutions(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x).jaxpr))
        assert len(orders) == 3 and len(set(orders)) == 1, type(layer)


def text_of_gradient(dtype=jnp.float32):
    x, kernel = normal(6, 4).astype(dtype), normal(4, 3).astype(dtype)
    loss = lambda x, kernel: gradients.product(x, kernel, out=jnp.float32).sum()
    return jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()


def test_other_devices_and_dtypes_get_plain_products(monkeypatch):
    assert "optimization_barrier" in text_of_gradient()
    assert "optimization_barrier" not in text_of_gradient(jnp.bfloat16)
    monkeypatch.setattr(gradients, "reordered", lambda: False)
    assert "optimization_barrier" not in text_of_gradient()


def test_elsewhere_everything_is_jaxs_own():
    """A critic can be differentiated forwards, and in both ways one after the other."""
    graphdef, _ = functional.abstract(build(SMALLEST))
    params, batch = functional.init(build(SMALLEST), 0), fake(2)

    def score(pixels):
        return functional.merge(graphdef, params)(batch._replace(image=pixels)).scores[:, 0].sum()

    pixels = jnp.asarray(batch.image, jnp.float32) / 255
    forwards_of = lambda function, x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda x: forwards_of(score, x)).lower(pixels)

    def outside(x):
        return forwards_of(score, x), jax.grad(score)(x).sum(), jnp.isfinite(forwards_of(jax.grad(score), x)).all()

    forwards, backwards, finite = contextvars.Context().run(jax.jit(outside), pixels)
    np.testing.assert_allclose(forwards, backwards, rtol=1e-3, atol=1e-4)
    assert finite


def heads(length, seed):
    return normal(3, length, 2, 5, seed=seed)


def padding(keys):
    return jnp.asarray(np.arange(keys) < np.array([[keys], [max(1, keys - 4)], [1]]))


@pytest.mark.parametrize(
    ("queries", "keys", "masked", "causal", "examples"),
    [(7, 13, True, False, 1), (9, 9, False, True, 1), (6, 11, True, False, 3), (8, 8, False, False, 0)],
)
def test_attention_and_all_its_gradients(monkeypatch, queries, keys, masked, causal, examples):
    """Against JAX's own; `examples` is the bias's batch, 0: there is none."""
    inputs = [heads(queries, 1), heads(keys, 2), heads(keys, 3)]
    inputs += [normal(examples, 2, queries, keys, seed=4)] if examples else []
    options = dict(mask=padding(keys) if masked else None, causal=causal)
    run = lambda q, k, v, bias=None: attention(q, k, v, bias=bias, **options)
    actual = with_gradients(run, *inputs)
    monkeypatch.setattr(gradients, "reordered", lambda: False)
    expected = with_gradients(run, *inputs)
    close(actual, expected)
    assert all(np.abs(gradient).max() > 0.1 for gradient in expected[1])


@pytest.mark.parametrize("leading", [(5,), (2, 3, 4)])
def test_layer_norm_and_all_its_gradients(monkeypatch, leading):
    """Against JAX's own, for unlike channels; a constant row too."""
    norm = layers.LayerNorm(6, eps=1e-3)
    x, scale, bias = 3 * normal(*leading, 6, seed=1) + 1, normal(6, seed=2), normal(6, seed=3)
    x = x.at[0].set(0.5)

    def run(x, scale, bias):
        return functional.merge(nnx.graphdef(norm), {"scale": scale, "bias": bias})(x)

    actual = with_gradients(run, x, scale, bias)
    monkeypatch.setattr(gradients, "reordered", lambda: False)
    expected = with_gradients(run, x, scale, bias)
    close(actual, expected)
    assert all(np.abs(gradient).max() > 0.1 for gradient in expected[1])


def test_an_example_without_keys(monkeypatch):
    """Its logits have no gradient; masks of other shapes."""
    mask = jnp.asarray(rng(5).random((3, 1, 4, 6)) < 0.5).at[1].set(False)
    inputs = heads(4, 1), heads(6, 2), heads(6, 3), normal(1, 2, 4, 6, seed=4)
    run = lambda q, k, v, bias: attention(q, k, v, bias=bias, mask=mask, scale=1.0)
    actual = with_gradients(run, *inputs)
    monkeypatch.setattr(gradients, "reordered", lambda: False)
    close(actual, with_gradients(run, *inputs))
    np.testing.assert_array_equal(actual[1][0][1], 0)


def test_attention_in_bfloat16():
    q, k, v = (heads(7, seed).astype(jnp.bfloat16) for seed in (1, 2, 3))
    run = lambda q, k, v: attention(q, k, v).astype(jnp.float32)
    actual = with_gradients(run, q, k, v)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in actual[1])
    close(actual[1], with_gradients(run, *(x.astype(jnp.float32) for x in (q, k, v)))[1], 3e-2)


@pytest.mark.parametrize(
    ("examples", "width", "calls"), [(16, 8, 2), (34, 256, 2), (17, 8, 1), (14, 8, 1), (16, 257, 1)]
)
def test_which_batches_are_computed_in_halves(examples, width, calls):
    seen = []

    def double(batch):
        seen.append(len(batch["x"]))
        return {"y": 2 * batch["x"], "none": None}

    x = jnp.arange(3.0 * examples).reshape(examples, 3)
    actual = execution.in_halves(double, {"x": x}, width)
    assert seen == [examples // calls] * calls and actual["none"] is None
    np.testing.assert_array_equal(actual["y"], 2 * x)


def test_the_network_in_halves(monkeypatch):
    """Values and gradients of a batch of 16, with labels missing here and there."""
    batch = fake(16)
    batch = batch._replace(heatmap_mask=batch.heatmap_mask & (np.arange(16) != 3)[:, None])
    graphdef, _ = functional.abstract(build(SMALLEST))
    params = functional.init(build(SMALLEST), 0)

    def loss(params):
        return losses.total(LossConfig(), functional.merge(graphdef, params)(batch), batch)[0]

    def run():
        return jax.jit(jax.value_and_grad(loss))(params)

    halves = run()
    monkeypatch.setattr(gradients, "reordered", lambda: False)
    close(halves, run(), 2e-5)
