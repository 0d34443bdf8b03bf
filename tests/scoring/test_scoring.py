"""Scoring at scale in one process: every kind of input, URLs, hostile archives, skipping what is done."""

import json
import warnings

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rahf.core.errors import ScoreError
from rahf.scoring import files, score
from rahf.scoring.fields import ReadOptions
from rahf.text.prompts import collected_notes
from tests.helpers.critic_maker import ColourCritic
from tests.helpers.score_maker import (
    EXPECTED,
    jsonl,
    parquet,
    picture,
    pictures,
    run,
    scores_of,
    shards,
    table,
)

KINDS = {
    "jsonl": (jsonl, 3),
    "folder": (pictures, 3),
    "parquet": (parquet, 3),
    "parquet of structs": (lambda folder: parquet(folder, "struct"), 3),
    "parquet of paths": (lambda folder: parquet(folder, "path"), 3),
    "webdataset": (shards, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_scores(tmp_path, kind):
    make, blocks = KINDS[kind]
    source = make(tmp_path)
    summary = run([source], tmp_path / "out", block_size=2)
    rows = table(tmp_path / "out")
    assert scores_of(rows) == EXPECTED and [row["prompt"] for row in rows] == [f"number {n}" for n in range(5)]
    for row in rows:
        assert row["alignment"] == pytest.approx(100 / 255, abs=1e-6) and row["error"] is None
    assert (summary.blocks, summary.rows, summary.scored, summary.refused) == (blocks, 5, 5, 0)
    assert rows[0]["group"] == ("0" if kind == "jsonl" else "number 0")
    assert rows[4]["key"] == {
        "jsonl": "4.png",
        "folder": "more/4.png",
        "parquet of paths": "4.png",
        "webdataset": "004",
    }.get(kind, "row 4")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["model"] == "colours-1"


def test_urls_in_and_out(tmp_path):
    """By way of fsspec, here its file system in memory."""
    memory = fsspec.filesystem("memory")
    shards(tmp_path)
    parquet(tmp_path, "path")
    jsonl(tmp_path)
    for path in tmp_path.iterdir():
        memory.pipe_file(f"/in/{path.name}", path.read_bytes())
    inputs = ["memory://in/shard-*", "memory://in/path.parquet", "memory://in/candidates.jsonl"]
    try:
        run(inputs, "memory://out/scores", block_size=2)
        assert scores_of(table("memory://out/scores")) == EXPECTED * 3
        assert not [name for name in files.listing("memory://out/scores") if name.startswith(".")]
        memory.rm("/out/scores/part-00001.parquet")
        critic = ColourCritic()
        run(inputs, "memory://out/scores", block_size=2, load=lambda path: critic)
        assert sum(critic.calls) == 3  # the second shard only
        local = run(["memory://in/candidates.jsonl"], tmp_path / "out")
        assert local.scored == 5
        assert run(["memory://in/*.parquet"], tmp_path / "other").scored == 5
    finally:
        memory.rm("/in", recursive=True)
        memory.rm("/out", recursive=True)


def test_one_prompt_for_all_and_columns_by_name(tmp_path):
    here = pictures(tmp_path)
    for text in here.rglob("*.txt"):
        text.unlink()
    run([here], tmp_path / "a", options=ReadOptions(prompt="all"))
    assert {row["prompt"] for row in table(tmp_path / "a")} == {"all"}
    refused = run([here], tmp_path / "b")
    assert refused.refused == 5
    assert table(tmp_path / "b")[3]["error"] == "no prompt: give one for all, or write it to more/3.txt"
    odd = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"img": [picture(9)], "words": ["w"], "who": [3]}), odd)
    with pytest.raises(ScoreError, match="no column image or jpg.*it has img, words, who. Give --image-column"):
        run([odd], tmp_path / "c")
    run([odd], tmp_path / "d", options=ReadOptions(None, "img", "words", "who"))
    assert [(row["prompt"], row["group"]) for row in table(tmp_path / "d")] == [("w", "3")]
    with pytest.raises(ScoreError, match="no column word; it has img, words, who"):
        run([odd], tmp_path / "e", options=ReadOptions(None, "img", "word"))


def test_threads_beside_change_no_note_and_no_filter(tmp_path, tiny_critic):
    """Pictures whose decoders would warn, while prompts are cut: `warnings.catch_warnings` would lose some of both."""
    folder = tmp_path / "in"
    folder.mkdir()
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    for number in range(64):
        palette.save(folder / f"{number:02d}.png", transparency=bytes(range(8)))
        (folder / f"{number:02d}.txt").write_text(f"{number} " + "word " * 60)
    before = list(warnings.filters)
    summary = score("model", [folder], tmp_path / "out", load=lambda _: tiny_critic, batch_size=8)
    assert (summary.rows, summary.refused, summary.prompts_cut) == (64, 0, 64)
    assert list(warnings.filters) == before
    with collected_notes() as notes:
        tiny_critic.tokens(["a cat", "word " * 60])
    assert list(notes) == ["word " * 60]
