"""Scoring at scale: hostile and damaged archives, kills and restarts, other jobs, bad options."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from rahf.cli import main as cli
from rahf.core.errors import ScoreError
from rahf.scoring.blocks import Block, lines
from rahf.scoring.fields import ReadOptions
from rahf.scoring.job import Job
from rahf.scoring.plan import plan
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
    tar,
)


def test_hostile_archives_write_nothing_and_stop_nothing(tmp_path):
    link, device = tarfile.TarInfo("bbb.png"), tarfile.TarInfo("ccc.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    huge = io.BytesIO()
    from PIL import Image

    Image.new("1", (9000, 9000)).save(huge, "PNG", compress_level=1)
    members = [
        ("../../evil.png", picture(1)), ("../../evil.txt", b"a"),
        ("/tmp/evil2.png", picture(2)), ("/tmp/evil2.txt", b"b"),
        (link, b""), ("bbb.txt", b"a link"), (device, b""), ("ccc.txt", b"a device"),
        ("huge.png", huge.getvalue()), ("huge.txt", b"a bomb"),
        ("long.png", picture(3)), ("long.txt", b"x" * 1_000_001),
        ("latin.png", picture(4)), ("latin.txt", "é".encode("latin-1")), ("odd.png", picture(5)), ("odd.json", b"{"),
        ("bare.png", picture(6)), ("good.png", picture(7)), ("good.json", b'{"caption": "fine", "group": 4}'),
    ]  # fmt: skip
    inner = tmp_path / "inner"
    inner.mkdir()
    before = sorted(tmp_path.rglob("*"))
    tar(inner / "evil.tar", members)
    summary = run([inner / "evil.tar"], inner / "out")
    errors = {row["key"]: row["error"] for row in table(inner / "out")}
    assert errors.pop("../../evil") is errors.pop("/tmp/evil2") is errors.pop("good") is None
    assert list(errors) == ["bbb", "ccc", "huge", "long", "latin", "odd", "bare"]
    assert errors["bbb"].startswith("no picture") and errors["ccc"].startswith("no picture")
    assert "81.0 megapixels, more than the limit" in errors["huge"]
    assert errors["long"] == "txt: more than 1 MB" and errors["latin"].startswith("not UTF-8")
    assert errors["odd"].startswith("not JSON") and errors["bare"] == "no prompt: no .txt, and no prompt in .json"
    assert summary.scored == 3 and summary.refused == 7
    outside = [p for p in sorted(tmp_path.rglob("*")) if inner not in p.parents]
    assert outside == before


def test_damaged_archives_give_their_undamaged_part(tmp_path):
    shards(tmp_path)
    for name in ("shard-0.tar", "shard-1.tar.gz"):
        data = (tmp_path / name).read_bytes()
        # After the first sample of the one, in the middle of the compressed other.
        (tmp_path / name).write_bytes(data[: 3600 if name.endswith("r") else len(data) // 2])
    (tmp_path / "shard-2.tar").write_bytes(b"not a tar at all" * 99)
    parquet(tmp_path)
    damaged = bytearray((tmp_path / "bytes.parquet").read_bytes())
    damaged[4:60] = bytes(56)
    (tmp_path / "bad.parquet").write_bytes(damaged)
    (tmp_path / "worse.parquet").write_bytes(b"PAR1" + bytes(100))
    summary = run([tmp_path / "shard-*", tmp_path / "bad.parquet", tmp_path / "worse.parquet"], tmp_path / "out")
    rows = table(tmp_path / "out")
    by_source = {}
    for row in rows:
        by_source.setdefault(row["source"].rsplit("/", 1)[1], []).append(row)
    for name in ("shard-0.tar", "shard-1.tar.gz", "shard-2.tar"):
        assert "the shard is damaged from here on" in by_source[name][-1]["error"], name
        assert all(row["error"] is None for row in by_source[name][:-1])
    assert scores_of(by_source["shard-0.tar"][:-1]) == EXPECTED[:1]
    assert any("the file is damaged from here on" in (row["error"] or "") for row in by_source["bad.parquet"])
    assert scores_of(by_source["bad.parquet"])[-3:] == EXPECTED[2:]  # its other row groups
    assert "not a readable parquet file" in by_source["worse.parquet"][0]["error"]
    refused = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    assert len(refused) == summary.refused == 5 and {"source", "row", "key", "error"} == set(refused[0])


@pytest.mark.parametrize("make", [jsonl, pictures, parquet, shards])
def test_killed_at_any_block_and_restarted_it_ends_with_the_same_bytes(tmp_path, make):
    source = make(tmp_path)
    run([source], tmp_path / "uninterrupted", block_size=1)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "uninterrupted").iterdir()}

    class Killed(BaseException):
        pass

    class Stopping(ColourCritic):
        def __call__(self, *arguments, **options):
            if len(self.calls) == 2:  # as many as the longest block needs
                raise Killed
            return super().__call__(*arguments, **options)

    ended = []
    for _ in range(5):
        try:
            run([source], tmp_path / "out", block_size=1, load=lambda path: Stopping())
            ended.append("done")
        except Killed:
            ended.append("killed")
    assert ended[0] == "killed" and ended[-1] == "done"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == expected


def test_other_jobs_are_refused(tmp_path):
    source = jsonl(tmp_path)
    run([source], tmp_path / "out")
    for options, what in (
        (dict(batch_size=4), "batch_size differ"),
        (dict(block_size=3), "the inputs or the block size differ"),
        (dict(options=ReadOptions("x")), "prompt differ"),
    ):
        with pytest.raises(ScoreError, match=what):
            run([source], tmp_path / "out", **options)
    source.write_text(source.read_text().replace("number 1", "numero 1"))
    with pytest.raises(ScoreError, match="holds scores of another job .*or --restart to throw them away"):
        run([source], tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    assert run([source], tmp_path / "out", restart=True).scored == 5
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"
    other = tmp_path / "other"
    other.mkdir()
    (other / "part-00000.parquet").write_text("not ours")
    for restart in (False, True):
        with pytest.raises(ScoreError, match="other: has parts of a job but no job.json; give another folder"):
            run([source], other, restart=restart)
    assert (other / "part-00000.parquet").read_text() == "not ours"


def test_mixed_models_are_noticed_at_the_end(tmp_path):
    """Two machines with different models under one path: each checks only its own."""
    source = jsonl(tmp_path)

    class Changing(ColourCritic):
        @property
        def model_id(self):
            return f"colours-{len(self.calls) // 2}"

    job = Job(str(tmp_path / "out"), ReadOptions(), 2)
    for block in job.begin(plan([str(source)], 2)):
        critic = Changing()
        critic.calls = [0] * 2 * block.number
        job.score(critic, block)
    with pytest.raises(
        ScoreError, match=r"different models, colours-0 \(from part 0 on\) and colours-1 \(from part 1 on\)"
    ):
        job.finish(3)


@pytest.mark.parametrize(
    "name, error",
    [
        ("nowhere.jsonl", "No such file"),
        ("nowhere.tar", "No such file"),
        ("picture.png", "expected .jsonl, .parquet, .tar, .tar.gz, .tgz or a folder"),
        ("empty", "a folder without pictures"),
        ("both", "holds shards and pictures"),
        ("*.nothing", "nothing fits this pattern"),
        ("nothing://x/*.tar", "nothing"),
    ],
)
def test_bad_inputs(tmp_path, name, error):
    (tmp_path / "picture.png").write_bytes(picture(3))
    for folder in ("empty", "both"):
        (tmp_path / folder).mkdir()
    (tmp_path / "both" / "a.png").write_bytes(picture(3))
    (tmp_path / "both" / "a.tar").write_bytes(b"")
    with pytest.raises((ScoreError, FileNotFoundError), match=error):
        run([name if "://" in name else tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, error",
    [
        (dict(runner="slurm"), "expected local or ray, found 'slurm'"),
        (dict(batch_size=0), "batch size"),
        (dict(block_size=0), "block size"),
    ],
)
def test_bad_options(tmp_path, options, error):
    with pytest.raises(ScoreError, match=error):
        run([jsonl(tmp_path)], tmp_path / "out", **options)


def test_lines_are_cut_at_the_same_places_from_anywhere(tmp_path):
    """Offsets of blocks, also after lines that are too long, without an end, or empty."""
    data = b"one\n\n" + b"x" * 1_000_001 + b"\nfour\r\n" + b"y" * 3_000_000
    numbered = list(lines(io.BytesIO(data)))
    assert [(number, line and line[:5]) for number, _, line in numbered] == [
        (1, b"one\n"), (2, b"\n"), (3, None), (4, b"four\r"), (5, None),
    ]  # fmt: skip
    for number, offset, line in numbered:
        stream = io.BytesIO(data)
        stream.seek(offset)
        assert next(lines(stream, number, offset)) == (number, offset, line)


def test_blocks_travel_as_text():
    block = Block(3, "folder", "/a/b", first=5, count=2, names=("c.png", "d é.png"), error="x")
    assert Block.from_json(block.to_json()) == block


def test_a_picture_that_is_too_large_is_not_read_completely(tmp_path, monkeypatch):
    monkeypatch.setattr("rahf.scoring.score_block.MAX_IMAGE", 50)
    run([jsonl(tmp_path)], tmp_path / "out")
    assert table(tmp_path / "out")[0]["error"] == "0.png: more than 5e-05 MB"


def test_equals_the_critic(tmp_path, tiny_critic):
    """With a real network: what is written is what a direct call gives, bad neighbours or not."""
    source = jsonl(tmp_path)
    (tmp_path / "2.png").write_bytes(b"")
    summary = run([source], tmp_path / "out", load=lambda path: tiny_critic, batch_size=4)
    rows = table(tmp_path / "out")
    good = [0, 1, 3, 4]
    expected = tiny_critic([tmp_path / f"{n}.png" for n in good], [f"number {n}" for n in good]).scores
    scores = [[rows[n][name] for name in ("plausibility", "alignment", "aesthetics", "overall")] for n in good]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert rows[2]["error"] == "2.png: the file is empty" and rows[2]["plausibility"] is None
    assert summary.model == tiny_critic.model_id and summary.scored == 4


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rahf.critic.loading.load", lambda path: ColourCritic())
    here = pictures(tmp_path)
    (here / "0.txt").unlink()
    (here / "1.txt").write_text("many words that nobody ever reads here")
    assert cli.main(["score", "model", str(here), "--out", str(tmp_path / "out"), "--batch-size", "3"]) == 3
    out, err = capsys.readouterr()
    assert out == f"4 scored by colours-1 in 1 blocks: {tmp_path}/out/part-*.parquet\n"
    assert err.splitlines() == [
        f"1 of 5 could not be scored; why: {tmp_path}/out/refused.jsonl",
        "of 1 the model did not read the whole prompt (column prompt_cut)",
    ]
    assert cli.main(["score", "model", str(tmp_path / "no"), "--out", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.startswith("rahf: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_and_stops_no_job(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(picture(9))
    os.mkfifo(folder / "a.txt")
    (folder / "b.txt").mkdir()
    (folder / "c.txt").write_text("a prompt")
    summary = run([folder], tmp_path / "out")
    assert (summary.rows, summary.refused) == (3, 2)
    reasons = (tmp_path / "out" / "refused.jsonl").read_text()
    assert "a.txt: a FIFO, not a regular file" in reasons and "b.txt: Is a directory" in reasons
    os.mkfifo(tmp_path / "f.png")
    lines = [{"image": "f.png", "prompt": "a"}, {"image": "pictures/c.png", "prompt": "a"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run([tmp_path / "l.jsonl"], tmp_path / "out2")
    assert (summary.rows, summary.refused) == (2, 1)
    for name in ("f.jsonl", "f.parquet", "f.tar"):
        os.mkfifo(tmp_path / name)
        with pytest.raises((OSError, ScoreError), match="a FIFO, not a regular file"):
            run([tmp_path / name], tmp_path / name.replace("f.", "out-"))
