"""Records in memory and loaders over them, for the loaders' tests."""

import dataclasses
import io
import json
import os
import pathlib
import sys
import threading

import numpy as np
from PIL import Image

from data_pipelines.loading import loader
from data_pipelines.store.records import Record
from rahf.config import DataConfig
from rahf.core.batch import Batch
from rahf.text import split_words

SIZE = 24
CONFIG = DataConfig(
    path="data/tiny", batch_size=4, max_prompt_tokens=20, max_target_tokens=24, max_words=6, augment=None
)
PROMPTS = ("a yellow cat, sitting", "two red houses", "a dog left of a tree", "blue")


def encode(values, format="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, quality=95)
    return buffer.getvalue()


def record(number: int = 0, **changes) -> Record:
    """Record `number`; its image is uniform in a colour that depends on the number."""
    prompt = PROMPTS[number % len(PROMPTS)]
    words = tuple(split_words(prompt))
    heat = np.zeros((40, 40), np.uint8)
    heat[:20] = 255
    fields = {
        "uid": f"u{number}",
        "prompt": prompt,
        "words": words,
        "word_labels": tuple(i % 2 for i in range(len(words))),
        "image": encode(np.full((32, 32, 3), 10 * number % 256, np.uint8), "JPEG"),
        "implausibility": encode(heat),
        "misalignment": encode(np.rot90(heat)),
        "scores": np.array([0.25, 0.5, 0.75, number / 100], np.float32),
    }
    return Record(**{**fields, **changes})


class Listed:
    """Records in memory; picklable, as a source must be."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def make(source, tokenizer, seed=0, process=(0, 1), **changes) -> loader.TrainLoader:
    config = dataclasses.replace(CONFIG, **changes)
    return loader.train_loader(config, SIZE, tokenizer, seed, *process, source=source)


def take(iterator, count) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def order(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


def assert_equal(a: list[Batch], b: list[Batch]):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        for name in Batch._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


class Watched(Listed):
    """Writes down in which process it is read, and whether that process has JAX."""

    def __init__(self, records, folder):
        super().__init__(records)
        self.folder = pathlib.Path(folder)

    def __getitem__(self, index):
        have = sorted({"jax", "jaxlib", "torch", "tensorflow"} & set(sys.modules))
        note = self.folder / f".{os.getpid()}-{threading.get_ident()}"
        note.write_text(json.dumps(have))
        note.rename(self.folder / str(os.getpid()))  # whole or not at all: a test may kill this process
        return super().__getitem__(index)


def evaluate(source, tokenizer, batch_size=4, process=(0, 1), limit=None):
    options = {"limit": limit, "source": source}
    return loader.eval_loader(CONFIG, "dev", SIZE, tokenizer, batch_size, *process, **options)
