"""Prefixes of the prompt that name the label to predict, for the augmented-prompt variant (RAHF, section 4.1).

Importable without JAX.
"""

from __future__ import annotations

import dataclasses

from rahf.config import Config
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ConfigError
from rahf.text import UNK_ID, Tokenizer

#: Names of heatmaps, then of scores. The last task, the target sequence, has no prefix.
TASKS = (*(f"{name} heatmap" for name in HEATMAPS), *(f"{name} score" for name in SCORES))
#: Number of tasks, including the sequence.
COUNT = len(TASKS) + 1


def encode(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Piece ids of each of `TASKS`.

    Raises:
      ValueError: the vocabulary cannot write a name, or writes two of them alike; the network could not tell
        which label to predict.
    """
    task_ids = tuple(tuple(tokenizer.encode(task)) for task in TASKS)
    for task, ids in zip(TASKS, task_ids):
        if not ids or UNK_ID in ids:
            raise ConfigError(
                f"the vocabulary {tokenizer.source} cannot write {task!r}, a prefix of the augmented-prompt variant; "
                "use one with byte pieces (T5's, or one made by `rahf prepare`), or model.variant multi-head"
            )
    for number, ids in enumerate(task_ids):
        if ids in task_ids[:number]:
            raise ConfigError(
                f"the vocabulary {tokenizer.source} writes {TASKS[task_ids.index(ids)]!r} and {TASKS[number]!r} alike; "
                "the augmented-prompt variant needs another vocabulary, or model.variant multi-head"
            )
    return task_ids


def resolve(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with the prefixes' piece ids in `model.task_ids`; unchanged for other variants.

    Raises:
      ValueError: see `encode`; or the config has prefixes of another vocabulary.
    """
    if getattr(config.model, "variant", "") != "augmented-prompt":
        return config
    task_ids = encode(tokenizer)
    if config.model.task_ids not in ((), task_ids):
        raise ConfigError(
            f"model.task_ids are not those of the vocabulary {tokenizer.source}; leave them out, a run fills "
            "them in when it starts, or use the vocabulary that the model was made with"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, task_ids=task_ids))
