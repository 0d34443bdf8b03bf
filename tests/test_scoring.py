"""Scoring at scale in one process: every kind of input, URLs, hostile archives, skipping what is done."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from critic_maker import ColourCritic, plain
from test_images import encode

from rahf import cli
from rahf.scoring import files, records
from rahf.scoring.blocks import Block, lines, plan
from rahf.scoring.files import ScoreError
from rahf.scoring.records import Reading
from rahf.scoring.score import score

REDS = (10, 250, 30, 99, 180)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Files need not survive a power cut here, and a busy disk takes a tenth of a second for each."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


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
    (here / ".hidden.png").write_bytes(b"")
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
    run([here], tmp_path / "a", reading=Reading(prompt="all"))
    assert {row["prompt"] for row in table(tmp_path / "a")} == {"all"}
    refused = run([here], tmp_path / "b")
    assert refused.refused == 5
    assert table(tmp_path / "b")[3]["error"] == "no prompt: give one for all, or write it to more/3.txt"
    odd = tmp_path / "odd.parquet"
    pq.write_table(pa.table({"img": [picture(9)], "words": ["w"], "who": [3]}), odd)
    with pytest.raises(ScoreError, match="no column image or jpg.*it has img, words, who. Give --image-column"):
        run([odd], tmp_path / "c")
    run([odd], tmp_path / "d", reading=Reading(None, "img", "words", "who"))
    assert [(row["prompt"], row["group"]) for row in table(tmp_path / "d")] == [("w", "3")]
    with pytest.raises(ScoreError, match="no column word; it has img, words, who"):
        run([odd], tmp_path / "e", reading=Reading(None, "img", "word"))


def test_hostile_archives_write_nothing_and_stop_nothing(tmp_path):
    link, device = tarfile.TarInfo("bbb.png"), tarfile.TarInfo("ccc.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    huge = io.BytesIO()
    from PIL import Image

    Image.new("1", (9000, 9000)).save(huge, "PNG", compress_level=1)
    members = [
        ("../../evil.png", picture(1)), ("../../evil.txt", b"a"), ("/tmp/evil2.png", picture(2)), ("/tmp/evil2.txt", b"b"),
        (link, b""), ("bbb.txt", b"a link"), (device, b""), ("ccc.txt", b"a device"),
        ("huge.png", huge.getvalue()), ("huge.txt", b"a bomb"), ("long.png", picture(3)), ("long.txt", b"x" * 1_000_001),
        ("latin.png", picture(4)), ("latin.txt", "é".encode("latin-1")), ("odd.png", picture(5)), ("odd.json", b"{"),
        ("bare.png", picture(6)), ("good.png", picture(7)), ("good.json", b'{"caption": "fine", "group": 4}'),
    ]  # fmt: skip
    inner = tmp_path / "inner"
    inner.mkdir()
    before = sorted(tmp_path.rglob("*"))
    tar(inner / "evil.tar", members)
    summary = run([inner / "evil.tar"], inner / "out")
    found = {row["key"]: row["error"] for row in table(inner / "out")}
    assert found.pop("../../evil") is found.pop("/tmp/evil2") is found.pop("good") is None
    assert list(found) == ["bbb", "ccc", "huge", "long", "latin", "odd", "bare"]
    assert found["bbb"].startswith("no picture") and found["ccc"].startswith("no picture")
    assert "81.0 megapixels, more than the limit" in found["huge"]
    assert found["long"] == "txt: more than 1 MB" and found["latin"].startswith("not UTF-8")
    assert found["odd"].startswith("not JSON") and found["bare"] == "no prompt: no .txt, and no prompt in .json"
    assert summary.scored == 3 and summary.refused == 7
    outside = [p for p in sorted(tmp_path.rglob("*")) if inner not in p.parents]
    assert outside == before


def test_damaged_archives_give_what_is_whole(tmp_path):
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
    run([source], tmp_path / "whole", block_size=1)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()}

    class Killed(BaseException):
        pass

    class Stopping(ColourCritic):
        def __call__(self, *given, **options):
            if len(self.calls) == 2:  # as many as the longest block needs
                raise Killed
            return super().__call__(*given, **options)

    ended = []
    for _ in range(5):
        try:
            run([source], tmp_path / "out", block_size=1, load=lambda path: Stopping())
            ended.append("done")
        except Killed:
            ended.append("killed")
    assert ended[0] == "killed" and ended[-1] == "done"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == whole


def test_other_jobs_are_refused(tmp_path):
    source = jsonl(tmp_path)
    run([source], tmp_path / "out")
    for options, what in (
        (dict(batch_size=4), "batch_size differ"),
        (dict(block_size=3), "the inputs or the block size differ"),
        (dict(reading=Reading("x")), "prompt differ"),
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
    """Two machines with different models under one path: each knows only its own."""
    source = jsonl(tmp_path)

    class Changing(ColourCritic):
        @property
        def model_id(self):
            return f"colours-{len(self.calls) // 2}"

    from rahf.scoring.job import Job

    job = Job(str(tmp_path / "out"), Reading(), 2)
    made = plan([str(source)], 2)
    for block in job.begin(made):
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
    found = list(lines(io.BytesIO(data)))
    assert [(number, line and line[:5]) for number, _, line in found] == [
        (1, b"one\n"), (2, b"\n"), (3, None), (4, b"four\r"), (5, None),
    ]  # fmt: skip
    for number, offset, line in found:
        stream = io.BytesIO(data)
        stream.seek(offset)
        assert next(lines(stream, number, offset)) == (number, offset, line)


def test_blocks_travel_as_text():
    block = Block(3, "folder", "/a/b", first=5, count=2, names=("c.png", "d é.png"), error="x")
    assert Block.from_json(block.to_json()) == block


def test_a_picture_that_is_too_large_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("rahf.scoring.block.MAX_IMAGE", 50)
    run([jsonl(tmp_path)], tmp_path / "out")
    assert table(tmp_path / "out")[0]["error"] == "0.png: more than 5e-05 MB"
    assert records.MAX_IMAGE == 100_000_000


def test_equals_the_critic(tmp_path, tiny_critic):
    """With a real network: what is written is what a direct call gives, bad neighbours or not."""
    source = jsonl(tmp_path)
    (tmp_path / "2.png").write_bytes(b"")
    summary = run([source], tmp_path / "out", load=lambda path: tiny_critic, batch_size=4)
    rows = table(tmp_path / "out")
    good = [0, 1, 3, 4]
    expected = tiny_critic([tmp_path / f"{n}.png" for n in good], [f"number {n}" for n in good]).scores
    found = [[rows[n][name] for name in ("plausibility", "alignment", "aesthetics", "overall")] for n in good]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert rows[2]["error"] == "2.png: the file is empty" and rows[2]["plausibility"] is None
    assert summary.model == tiny_critic.model_id and summary.scored == 4


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rahf.scoring.score.load_critic", lambda path: ColourCritic())
    here = pictures(tmp_path)
    (here / "0.txt").unlink()
    (here / "1.txt").write_text("many words that nobody ever reads here")
    assert cli.main(["score", "model", str(here), "--out", str(tmp_path / "out"), "--batch-size", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == f"4 scored by colours-1 in 1 blocks: {tmp_path}/out/part-*.parquet\n"
    assert err.splitlines() == [
        f"1 of 5 could not be scored; why: {tmp_path}/out/refused.jsonl",
        "of 1 the model did not read the whole prompt (column prompt_cut)",
    ]
    assert cli.main(["score", "model", str(tmp_path / "no"), "--out", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.startswith("rahf: ")
