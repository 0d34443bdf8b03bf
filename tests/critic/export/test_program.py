"""Serialised functions: the same numbers and derivatives; damaged or hostile bytes end in an ExportError."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from rahf.core.errors import ExportError, NotDifferentiable
from rahf.critic.export import program


def polynomial(params, pixels, weights):
    return (params["scale"] * pixels**2 * weights[:, None]).sum(1)


@pytest.fixture(scope="module")
def serialized() -> bytes:
    (batch,) = jax_export.symbolic_shape("b")
    shapes = {"scale": jax.ShapeDtypeStruct((), np.float32)}, (batch, 3), (batch,)
    shapes = (shapes[0], *(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes[1:]))
    return bytes(jax_export.export(jax.jit(polynomial))(*shapes).serialize(vjp_order=1))


def test_numbers_and_derivatives(serialized):
    function = program.differentiable(program.read_program(serialized, "test"))
    params, pixels = {"scale": jnp.float32(3)}, jnp.arange(6.0).reshape(2, 3)
    weights = jnp.array([1.0, -2.0])
    np.testing.assert_allclose(function(params, pixels, weights), [15, -300])  # 3 (0 + 1 + 4), 3 (9 + 16 + 25) * -2
    gradient = jax.grad(lambda x: function(params, x, weights).sum())(pixels)
    np.testing.assert_allclose(gradient, [[0, 6, 12], [-36, -48, -60]])
    rows = jax.vmap(lambda x, w: function(params, x[None], w[None])[0])(pixels, weights)
    np.testing.assert_allclose(rows, [15, -300])
    scales = jax.vmap(lambda scale: function({"scale": scale}, pixels, weights))(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(scales, [[5, -100], [15, -300]])
    with pytest.raises(TypeError, match="differentiable in its pixels, not in its parameters"):
        jax.grad(lambda p: function(p, pixels, weights).sum())(params)
    total = lambda x: function(params, x, weights).sum()
    for second in (jax.hessian(total), jax.grad(lambda x: jax.grad(total)(x).sum()), jax.jacrev(jax.grad(total)),
                   jax.jit(jax.vmap(jax.hessian(lambda x: function(params, x[None], weights[:1]).sum())))):  # fmt: skip
        with pytest.raises(NotDifferentiable, match="differentiable once.*load the run directory"):
            second(pixels)


def test_truncated_and_changed_programs(serialized):
    """Either the change is harmless to the reader of the table, or it ends in ExportError; memory stays small."""
    stream = np.random.default_rng(0)
    damaged = [serialized[:length] for length in (0, 1, 3, 4, 8, 40, len(serialized) // 2)]
    for at in [*range(0, 64), *stream.integers(0, len(serialized), 100)]:
        changed = bytearray(serialized)
        changed[at] ^= 0xFF
        damaged.append(bytes(changed))
    damaged += [stream.bytes(1000), b"\xff" * 1000, b"\0" * 1000]
    refused = 0
    tracemalloc.start()
    try:
        for data in damaged:
            try:
                program.read_program(data, "part")
            except ExportError as error:
                refused += 1
                assert str(error).startswith("part: jax ") and "export the model again" in str(error)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert refused > 20


def test_a_missing_flatbuffers_package_is_named(serialized, monkeypatch):
    def deserialize(_):
        raise ImportError("Please install 'flatbuffers' in order to use Exported serialization")

    monkeypatch.setattr(jax_export, "deserialize", deserialize)
    with pytest.raises(ExportError, match="part: Please install 'flatbuffers'.*pip install flatbuffers"):
        program.read_program(serialized, "part")
