"""Makes small parquet shards of published feedback, in every layout that copies of them have."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 16
PROMPT = "a red cat, sitting"
WORDS = ["a", "red", "cat", "sitting"]


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def photo(number=0, size=(SIDE, SIDE), kind="PNG"):
    rng = np.random.default_rng(number)
    return encoded(rng.integers(0, 256, (*size, 3), dtype=np.uint8), kind)


def heat(number=0, size=(SIDE, SIDE), dtype=np.float16):
    """Values in 0..1, exact in half precision; 0.5 at the upper left corner."""
    values = np.zeros(size, dtype)
    values[: 4 + number, :4] = 0.5
    return values


def nested(maps, kind=None):
    """A column of nested lists; None is null, a list is taken as it is."""
    kind = kind or pa.list_(pa.list_(pa.float16()))
    return pa.array([list(map(list, one)) if isinstance(one, np.ndarray) else one for one in maps], kind)


def rapidata_row(number=0, **changes):
    row = {
        "image": {"bytes": photo(number), "path": f"{number}.png"},
        "prompt": f"{PROMPT} {number}",
        "word_scores": json.dumps([*([word, 0.25] for word in [*WORDS[:2], "cat,", WORDS[3], str(number)]),
                                   ["[No_mistakes]", 0.5]]),
        "alignment_score": 3.0, "coherence_score": 5.0, "style_score": 2.0,
        "alignment_score_norm": 0.4, "coherence_score_norm": 1.0, "style_score_norm": 0.2,
        "alignment_heatmap": heat(0), "coherence_heatmap": heat(number),
    }  # fmt: skip
    return {**row, **changes}


def write_rapidata(path, rows, row_group_size=2):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in columns:
        if name.endswith("_heatmap"):
            columns[name] = nested(columns[name])
        elif "score" in name and name != "word_scores":
            columns[name] = pa.array(columns[name], pa.float32())
    return write(path, columns, row_group_size)


def write(path, columns, row_group_size=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path
