"""Counted arithmetic against numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from rahf.nn.flops import count_flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_products():
    assert count_flops(lambda a, b: jnp.tanh(a @ b) + 1, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    attention = functools.partial(jnp.einsum, "bqhd,bkhd->bhqk")
    assert count_flops(attention, shape(2, 3, 4, 5), shape(2, 6, 4, 5)) == 2 * (2 * 4) * 3 * 6 * 5
    assert count_flops(lambda a: jnp.exp(a).sum(), shape(9, 9)) == 0
    assert count_flops(lambda tree: tree["a"] @ tree["b"], {"a": shape(3, 5), "b": shape(5)}) == 2 * 15


def test_convolutions_without_the_zeros_around():
    # In one dimension of 5 with 3 taps the outer taps each miss the image once: 5 · 3 - 2 = 13.
    assert count_flops(conv, shape(2, 5, 5, 3), shape(3, 3, 3, 4)) == 2 * 2 * 13 * 13 * 3 * 4
    valid = functools.partial(conv, padding="VALID")
    assert count_flops(valid, shape(2, 5, 5, 3), shape(3, 3, 3, 4)) == 2 * 2 * (3 * 3) * (3 * 3) * 3 * 4
    strided = functools.partial(conv, padding="VALID", window_strides=(2, 2))
    assert count_flops(strided, shape(1, 5, 5, 1), shape(3, 3, 1, 1)) == 2 * (2 * 3) ** 2
    grouped = functools.partial(conv, padding="VALID", feature_group_count=3)
    assert count_flops(grouped, shape(1, 5, 5, 3), shape(3, 3, 1, 6)) == 2 * (3 * 3) ** 2 * 6
    # Stride 2 transposed, 3 taps, 4 pixels to 8: the even outputs see one pixel, the odd ones two, the last but one.
    up = functools.partial(conv, padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))
    assert count_flops(up, shape(1, 4, 4, 1), shape(3, 3, 1, 1)) == 2 * (4 * 1 + 3 * 2 + 1) ** 2


def test_gradients_cost_twice_as_much_again():
    loss = lambda w, x: jnp.square(jnp.tanh(x @ w) @ w).sum()
    forward = count_flops(loss, shape(5, 5), shape(3, 5))
    assert forward == 2 * 2 * 3 * 25
    assert count_flops(jax.grad(loss), shape(5, 5), shape(3, 5)) == 2 * (2 + 2 + 1) * 3 * 25  # x needs no gradient
    assert count_flops(jax.grad(loss, (0, 1)), shape(5, 5), shape(3, 5)) == 3 * forward
    image = lambda k, x: jnp.square(conv(x, k)).sum()
    assert count_flops(jax.grad(image, (0, 1)), shape(3, 3, 2, 4), shape(1, 6, 6, 2)) == 3 * count_flops(
        image, shape(3, 3, 2, 4), shape(1, 6, 6, 2)
    )


def test_what_is_computed_again_counts_again():
    inner = lambda w, x: jnp.sin(jnp.sin(x @ w) @ w)
    loss = lambda function: lambda w, x: function(w, x).sum()
    kept, again = (jax.value_and_grad(loss(f)) for f in (inner, jax.checkpoint(inner)))
    assert count_flops(kept, shape(4, 4), shape(3, 4)) == 2 * 48 * (2 + 3)
    assert count_flops(again, shape(4, 4), shape(3, 4)) == 2 * 48 * (2 + 2 + 3)


def test_control_flow():
    def steps(w, x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert count_flops(steps, shape(4, 4), shape(4)) == 7 * 2 * 16
    assert count_flops(lambda w, x: jax.lax.map(lambda y: w @ y, x), shape(4, 4), shape(6, 4)) == 6 * 2 * 16
    branches = [lambda w: (w @ w).sum(), lambda w: w.sum()]
    assert count_flops(lambda i, w: jax.lax.switch(i, branches, w), jnp.int32(0), shape(4, 4)) == 2 * 64
    loop = lambda w, x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)
    with pytest.raises(ValueError, match="a while loop has no length before it runs; say how often it does by trips="):
        count_flops(loop, shape(4, 4), shape(4))
    assert count_flops(loop, shape(4, 4), shape(4), trips=5) == 5 * 2 * 16
    assert count_flops(lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x + 1, x), jnp.float32(0)) == 0


def test_inside_of_functions():
    twice = jax.jit(lambda w, x: (x @ w, w @ w))
    assert count_flops(twice, shape(4, 4), shape(4)) == 2 * (16 + 64)
    assert count_flops(lambda w, x: twice(w, x)[0], shape(4, 4), shape(4)) == 2 * 16  # nothing uses the other

    @jax.custom_vjp
    def own(w, x):
        return x @ w

    own.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (jnp.outer(kept[1], g), kept[0] @ (kept[0] @ g)))
    assert count_flops(own, shape(4, 4), shape(4)) == 2 * 16
    assert count_flops(jax.grad(lambda w, x: own(w, x).sum(), 1), shape(4, 4), shape(4)) == 2 * 2 * 16
