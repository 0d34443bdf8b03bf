"""Makes feedback files and pictures for `rahf prepare feedback`."""

import io
import json

import numpy as np
from PIL import Image

from data_pipelines import store
from data_pipelines.feedback.prepare import prepare

PROMPT = "a red cat"
WIDTH, HEIGHT = 60, 40
#: What a line needs besides its picture.
GOOD = {"prompt": PROMPT, "scores": {"overall": 0.5}}


def picture(path, width=WIDTH, height=HEIGHT, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(folder, lines):
    """A feedback file beside a folder of pictures; the arguments of `prepare`."""
    (folder / "pictures").mkdir(exist_ok=True)
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "feedback.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    return folder / "feedback.jsonl", folder / "pictures", folder / "out"


def run(folder, lines, **options):
    """All in one split, unless told otherwise; the records by uid."""
    arguments = write(folder, lines)
    summary = prepare(*arguments, progress=False, **{"dev": 0, "test": 0, **options})
    return summary, records(arguments[2])


def records(out):
    splits = {name: count for name, count in store.splits(out).items() if count}
    return {record.uid: record for split in splits for record in store.open_split(out, split)}


def grey(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def write_three(folder):
    """Three usable lines; the arguments of `prepare`."""
    for name in "abc":
        picture(folder / f"pictures/{name}.png")
    return write(folder, [{"image": f"{name}.png", **GOOD, "prompt": f"{name} red cat"} for name in "abc"])
