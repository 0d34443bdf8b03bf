"""Makes small label files, parquet shards and pictures in the formats of RichHF-18K and Pick-a-Pic."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipelines.richhf18k import tfrecord
from data_pipelines.store import tf_example

CAPTION = "a red cat, left of (the) dog"  # seven words
WORD_LABELS = "1 0 1 1 1 1 1"


def encode(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def photo(uid, kind="JPEG"):
    rng = np.random.default_rng(sum(map(ord, uid)))
    return encode(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), kind)


def grey_map(level=170):
    array = np.zeros((32, 32), np.uint8)
    array[8:20, 4:12] = level
    return array


def example(uid, **changes):
    features = {
        "filename": [f"train/{uid}.jpg".encode()],
        "artifact_score": [0.75],
        "misalignment_score": [0.5],
        "aesthetics_score": [0.25],
        "overall_score": [1.0],
        "artifact_map": [encode(grey_map())],
        "misalignment_map": [encode(grey_map(0))],
        "prompt_misalignment_label": [WORD_LABELS.encode()],
    }
    return tf_example.serialize({k: v for k, v in {**features, **changes}.items() if v is not None})


def write_labels(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        tfrecord.write(folder / f"{split}.tfrecord", examples)
    return folder


def write_shard(path, rows, row_group_size=2, **options):
    """Rows: (uid 0, picture 0, uid 1, picture 1, caption). Other columns as in Pick-a-Pic are there, too."""
    names = ("image_0_uid", "jpg_0", "image_1_uid", "jpg_1", "caption")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns, "ranking_id": list(range(len(rows)))})
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return path


def row(zero, one="other", caption=CAPTION):
    return (zero, photo(zero), one, photo(one), caption)


def refused(out):
    return [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def kinds(summary, split="train"):
    return {name: count for name, count in summary.splits[split].items() if count}


def make_small(tmp_path):
    """Nine records in three splits; their pictures on both sides of the rows of three shards.

    Returns:
      What `prepare` takes: the label folder, the list of image paths, the directory to make.
    """
    labels = write_labels(
        tmp_path / "labels",
        train=[example(f"a{i}") for i in range(5)],
        dev=[example("b0"), example("b1")],
        test=[example("c0"), example("c1")],
    )
    write_shard(tmp_path / "pick/0.parquet", [row("a0", "x"), row("y", "a1"), row("z0", "z1"), row("b0", "c0")])
    write_shard(tmp_path / "pick/1.parquet", [row("a2", "a3"), row("a4", "q")])
    write_shard(tmp_path / "pick/2.parquet", [row("q0", "q1"), row("q2", "b1"), row("c1", "q3")])
    return labels, [tmp_path / "pick"], tmp_path / "out"
