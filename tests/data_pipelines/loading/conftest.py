"""Fixtures of the loaders' tests."""

import pytest

from rahf.text import Tokenizer, train_tokenizer
from tests.helpers.loader_maker import PROMPTS, Listed, record


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(PROMPTS))


@pytest.fixture(scope="module")
def source() -> Listed:
    return Listed([record(i) for i in range(10)])
