"""Module ↔ nested dict, initial values, and what is said about differences."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.nn import functional, layers


class Inner(nnx.Module):
    def __init__(self, width):
        self.first = layers.Linear(3, width, bias=True, std=2.0, dtype=jnp.float32)
        self.norm = layers.LayerNorm(width)

    def __call__(self, x):
        return self.norm(self.first(x))


class Outer(nnx.Module):
    def __init__(self, width=4000):
        self.inner = Inner(width)
        self.table = layers.parameter(2, width, std=0.5, fill=3.0)

    def __call__(self, x):
        return self.inner(x) + self.table[...][0]


SHAPES = {
    "inner/first/bias": (4000,),
    "inner/first/kernel": (3, 4000),
    "inner/norm/bias": (4000,),
    "inner/norm/scale": (4000,),
    "table": (2, 4000),
}


def test_abstract_is_the_tree_without_values():
    _, shapes = functional.abstract(Outer)
    flat = functional.flatten(shapes)
    assert {path: leaf.shape for path, leaf in flat.items()} == SHAPES
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == jnp.float32 for leaf in flat.values())
    assert functional.count(shapes) == 4000 * 8
    huge = functional.abstract(lambda: Outer(10**12))[1]  # nothing is allocated
    assert functional.count(huge) == 8 * 10**12


def test_flatten_and_back():
    tree = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}
    assert list(functional.flatten(tree).items()) == [("a", 3), ("b/x/z", 2), ("b/y", 1)]
    assert functional.unflatten(functional.flatten(tree)) == tree
    assert functional.flatten({}) == functional.unflatten({}) == {}


def test_initial_values():
    flat = functional.flatten(functional.init(Outer, seed=5))
    assert {path: leaf.shape for path, leaf in flat.items()} == SHAPES
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in flat.values())
    kernel, table = np.asarray(flat["inner/first/kernel"]), np.asarray(flat["table"])
    assert abs(kernel.mean()) < 0.1 and abs(kernel.std() - 2.0) < 0.1
    assert abs(table.mean() - 3.0) < 0.1 and abs(table.std() - 0.5) < 0.03
    assert (np.asarray(flat["inner/norm/scale"]) == 1).all()
    assert not np.asarray(flat["inner/norm/bias"]).any() and not np.asarray(flat["inner/first/bias"]).any()


def test_initial_values_depend_on_seed_and_path_alone():
    one, same, other = (functional.flatten(functional.init(Outer, seed)) for seed in (5, 5, 6))
    for path in SHAPES:
        np.testing.assert_array_equal(one[path], same[path])
    assert (one["table"] != other["table"]).all()
    alone = functional.init(lambda: Inner(4000), 5)  # another path, another stream
    assert (alone["first"]["kernel"] != one["inner/first/kernel"]).any()

    class More(Outer):
        def __init__(self):
            super().__init__()
            self.added = layers.parameter(7, std=1.0)

    more = functional.flatten(functional.init(More, 5))
    np.testing.assert_array_equal(more["table"], one["table"])  # a new parameter disturbs no other


def test_initial_values_do_not_depend_on_where_they_lie():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    _, shapes = functional.abstract(Outer)
    placed = functional.flatten(functional.init(Outer, 5, jax.tree.map(lambda _: place, shapes)))
    for path, leaf in functional.flatten(functional.init(Outer, 5)).items():
        np.testing.assert_array_equal(placed[path], leaf)
        assert placed[path].sharding == place


def test_split_and_merge():
    graphdef, params = functional.split(Outer(4))
    assert functional.flatten(params).keys() == SHAPES.keys()
    params = jax.tree.map(lambda leaf: jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), params)
    x = jnp.asarray([[1.0, -1.0, 2.0]])
    actual = jax.jit(lambda p: functional.merge(graphdef, p)(x))(params)
    hidden = np.array([[1, -1, 2]]) @ np.arange(12).reshape(3, 4) + np.arange(4)
    expected = (hidden - hidden.mean()) / hidden.std() * np.arange(4) + np.arange(4) + np.arange(4)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    _, again = functional.split(functional.merge(graphdef, params))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again, params))


def test_differences():
    _, expected = functional.abstract(lambda: Outer(4))
    assert functional.parameter_differences(expected, expected) == []
    actual = functional.flatten(functional.abstract(lambda: Outer(5))[1])
    del actual["inner/norm/bias"]
    actual |= {"inner/first/bias": jnp.zeros(4), "extra/scale": jnp.zeros(2)}
    assert functional.parameter_differences(functional.unflatten(actual), expected) == [
        "inner/norm/bias: missing, expected (4,)",
        "extra/scale: not part of this model, shape (2,)",
        "inner/first/kernel: shape (3, 5), expected (3, 4)",
        "inner/norm/scale: shape (5,), expected (4,)",
        "table: shape (2, 5), expected (2, 4)",
    ]
    assert functional.parameter_differences({}, expected, limit=2)[1:] == [
        "inner/first/kernel: missing, expected (3, 4)",
        "… and 3 more",
    ]


def test_keys_of_dropout():
    key = jax.random.key(0)
    assert layers.subkey(None, 1) is None
    assert layers.subkey(key, 1) == layers.subkey(key, 1) != layers.subkey(key, 2)
    assert layers.subkey(key, 1) != key
