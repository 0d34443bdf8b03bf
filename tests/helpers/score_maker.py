"""The same five pictures as every kind of input of `rahf score`, and the table that it writes."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rahf.scoring import files
from rahf.scoring.run import score
from tests.helpers.critic_maker import ColourCritic, plain
from tests.helpers.image_maker import encode

REDS = (10, 250, 30, 99, 180)


def picture(red) -> bytes:
    return encode(plain(red, 100, 60))


def run(inputs, out, **options):
    options = {"load": lambda path: ColourCritic(), "batch_size": 2} | options
    return score("model", [str(one) for one in inputs], str(out), **options)


def table(out) -> list[dict]:
    """All rows of a job, in order."""
    names = [name for name in files.listing(str(out)) if name.startswith("part-")]
    return [
        row
        for name in names
        for row in pq.read_table(io.BytesIO(files.read(files.join(str(out), name), 10**7))).to_pylist()
    ]


def scores_of(rows) -> list[float]:
    return [None if row["plausibility"] is None else round(row["plausibility"], 5) for row in rows]


EXPECTED = [round(float(np.float32(1 - red / 255)), 5) for red in REDS]


def jsonl(folder):
    text = ""
    for number, red in enumerate(REDS):
        (folder / f"{number}.png").write_bytes(picture(red))
        text += json.dumps({"image": f"{number}.png", "prompt": f"number {number}", "group": number // 2}) + "\n"
    (folder / "candidates.jsonl").write_text(text)
    return folder / "candidates.jsonl"


def pictures(folder):
    here = folder / "pictures"
    (here / "more").mkdir(parents=True)
    for number, red in enumerate(REDS):
        path = here / ("more" if number > 2 else "") / f"{number}.png"
        path.write_bytes(picture(red))
        path.with_suffix(".txt").write_text(f"number\n{number} ")
    return here


def parquet(folder, kind="bytes"):
    images = [picture(red) for red in REDS]
    if kind == "struct":
        images = [{"bytes": one, "path": None} for one in images]
    if kind == "path":
        for number, one in enumerate(images):
            (folder / f"{number}.png").write_bytes(one)
        images = [f"{number}.png" for number in range(len(images))]
    columns = {"image": images, "caption": [f"number {n}" for n in range(len(images))], "width": [8] * len(images)}
    path = folder / f"{kind}.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards(folder):
    samples = []
    for number, red in enumerate(REDS):
        samples += [(f"{number:03d}.png", picture(red)), (f"{number:03d}.txt", f"number {number}".encode())]
        samples += [(f"{number:03d}.cls", b"5")]
    tar(folder / "shard-0.tar", samples[:6])
    tar(folder / "shard-1.tar.gz", samples[6:], "w:gz")
    return folder / "shard-*"
