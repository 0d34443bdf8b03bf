"""States to be saved, and a disk that is full."""

import resource

import jax
import jax.numpy as jnp
import numpy as np

from rahf.training.state import TrainState


def params(seed: int, width: int = 3) -> dict:
    values = np.random.default_rng(seed).standard_normal((2, width)).astype(np.float32)
    return {"tower": {"kernel": jnp.asarray(values), "bias": jnp.full(width, seed, jnp.float32)}}


def state(step: int, average: bool = False, width: int = 3) -> TrainState:
    moments = (jax.tree.map(lambda x: x / 3, params(step, width)), {"count": jnp.int32(step)}, ())
    return TrainState(jnp.int32(step), params(step, width), moments, params(step + 100, width) if average else None)


def shapes(of: TrainState) -> TrainState:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), of)


def assert_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def steps(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class full_disk:
    """No file can grow beyond 1 kB, which to a program looks like a disk that is full: write(2) fails.

    How large the files of a small checkpoint become differs from time to time; every one has files beyond 1 kB.
    """

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
