"""Fixtures of the critics' tests."""

import numpy as np
import pytest

from rahf.critic.critic import Critic
from tests.helpers.image_maker import smooth


@pytest.fixture
def critic(tiny_critic) -> Critic:
    return tiny_critic


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    sizes = [(40, 60), (32, 32), (33, 31), (200, 90), (8, 8)]
    return [smooth(h, w, seed) for seed, (h, w) in enumerate(sizes)]
