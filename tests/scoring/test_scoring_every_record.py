"""Every member of an archive and every file of a folder is scored or listed; what data name stays below the input."""

import http.server
import json
import os
import tarfile
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rahf.core.errors import ArgumentError, ScoreError
from rahf.scoring import files, score_block
from rahf.scoring.blocks import Block
from rahf.scoring.fields import ReadOptions
from rahf.scoring.records import records
from tests.helpers.score_maker import picture, run, table, tar


def archived(path, *names, **options):
    """Key → error of a shard of empty pictures and texts."""
    tar(path, [(name, b"x") for name in names])
    return {r.key: r.error for r in records(Block(0, "tar", str(path)), ReadOptions(**options))}


NO_PICTURE = "no picture (jpg, jpeg, png, webp, gif, bmp, tif, tiff)"
NO_PROMPT = "no prompt: no .txt, and no prompt in .json"
MACOS = "not a picture: metadata that macOS keeps beside a file"


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a.png", "a.txt", "cfg7.5_001.png", "cfg7.5_001.txt"], {"a": None, "cfg7.5_001": None}),
        (["c7.5_1.png", "c7.5_1.txt", "c7.5_2.txt", "c7.5_2.png"], {"c7.5_1": None, "c7.5_2": None}),
        (["c7.5_1.png", "c7.5_2.png"], {"c7.5_1": NO_PROMPT, "c7.5_2": NO_PROMPT}),
        (["._a.png", "a.png", "._a.txt", "a.txt"], {"._a.png": MACOS, "._a.txt": MACOS, "a": None}),
        (["x/y.z/a.png", "x/y.z/a.txt", "./b.JPG", "b.txt"], {"x/y.z/a": None, "b": None}),
        ([".a.png", ".a.txt"], {".a": None}),
        # Fields of one webdataset sample: not scored by themselves.
        (["0.cls", "0.jpg", "0.npy", "0.txt"], {"0": None}),
        (
            ["0.mask.png", "0.png", "0.seg.png", "0.txt", "0.long.txt"],
            {"0.mask.png": "the sample 0 has another picture, 0.png", "0": None,
             "0.seg.png": "the sample 0 has another picture, 0.png"},
        ),
        (["a.png", "a.jpg", "a.txt"], {"a.jpg": "the sample a has another picture, a.png", "a": None}),
        (["README", "b.npy", "c.txt"], {"README": NO_PICTURE, "b.npy": NO_PICTURE, "c": NO_PICTURE}),
    ],
)  # fmt: skip
def test_every_member_of_an_archive(tmp_path, names, expected):
    assert archived(tmp_path / "a.tar", *names) == expected


def test_many_names_of_one_family_do_not_wait_in_memory(tmp_path):
    names = [f"cfg7.5_{number:03d}.png" for number in range(100)]
    assert archived(tmp_path / "a.tar", *names, prompt="p") == {name[:-4]: None for name in names}


def test_a_damaged_archive_lists_its_whole_samples(tmp_path):
    path = tmp_path / "a.tar"
    archived(path, "c7.5_1.png", "c7.5_2.png", "c7.5_3.png")
    path.write_bytes(path.read_bytes()[: 2 * 1024 + 600])
    found = {r.key: r.error for r in records(Block(0, "tar", str(path)), ReadOptions("p"))}
    assert list(found) == ["c7.5_1", "c7.5_2", "c7.5_3"] and list(found.values())[:2] == [None, None]
    assert found["c7.5_3"].startswith("the shard is damaged from here on")


def test_every_file_of_a_folder(tmp_path):
    here = tmp_path / "pictures"
    (here / "sub" / "b.v2.txt").mkdir(parents=True)  # a folder in the place of a prompt
    for name in ("a.png", "sub/b.v2.png", ".c.png", "._a.png", "d.PNG"):
        (here / name).write_bytes(picture(9))
    (here / "a.txt").write_bytes(b"one")
    (here / "d.txt").write_bytes("é".encode("latin-1"))
    for name in ("lonely.txt", "notes.md", ".DS_Store"):
        (here / name).write_bytes(b"x")
    os.mkfifo(here / "pipe.png")
    (here / "gone.png").symlink_to("nowhere")
    (here / "again").symlink_to(here)
    os.mkfifo(here / "sub" / "e.txt")
    (here / "sub" / "e.png").write_bytes(picture(9))
    summary = run([here], tmp_path / "out", block_size=3)
    rows = {row["key"]: row["error"] for row in table(tmp_path / "out")}
    assert (summary.rows, summary.scored) == (len(rows), 1) and rows.pop("a.png") is None
    endings = ".jpg, .jpeg, .png, .webp, .gif, .bmp, .tif, .tiff"
    assert rows == {
        "sub/b.v2.png": "no prompt: sub/b.v2.txt: Is a directory",
        "sub/e.png": "no prompt: sub/e.txt: a FIFO, not a regular file; give a file",
        "d.PNG": "no prompt: d.txt: not UTF-8 (unexpected end of data)",
        ".c.png": "a hidden file; rename it to score it",
        "._a.png": MACOS,
        "lonely.txt": f"no picture beside it ({endings})",
        "notes.md": f"not a picture ({endings})",
        "pipe.png": "not a regular file",
        "gone.png": "cannot be read (No such file or directory)",
        "again/": "leads to a folder that is read already",
    }
    assert [row["row"] for row in table(tmp_path / "out")] == list(range(11))


# What data name


def line(folder, image, **options):
    """The error of a line, or the path that it leads to."""
    (folder / "c.jsonl").write_text(json.dumps({"image": image, "prompt": "p"}))
    (record,) = records(Block(0, "jsonl", str(folder / "c.jsonl"), 0, 1, 1), ReadOptions(**options))
    return record.error or record.image


@pytest.mark.parametrize(
    "image",
    ["/etc/passwd", "../secret.png", "sub/../../secret.png", "link/secret.png", "file:///etc/passwd", "local:///etc/x",
     "https://example.org/a.png", "webhdfs://127.0.0.1:1/a.png", "s3://bucket/a.png"],
)  # fmt: skip
def test_a_line_leads_nowhere_else(tmp_path, image):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path)
    error = line(here, image)
    assert error.startswith(f"image: {image!r} leads out of {here}; to allow it, give --images-from ")


@pytest.mark.parametrize("image", ["zip://a.png::/etc/passwd", "simplecache::https://a.org/b", "zip://a::s3://b/c.zip"])
def test_chains_of_protocols_are_refused_even_where_all_is_allowed(tmp_path, image):
    error = line(tmp_path, image, images_from=("/", "https://a.org", "zip://a"))
    assert error == f"image: {image!r} is a chain of protocols, which data may not name"


def test_what_may_be_reached():
    below = files.reachable
    assert below("/a", "b/c.png") == "/a/b/c.png" and below("/a", "/a/b.png") == "/a/b.png"
    assert below("/a", "../b/c.png", ["/b"]) == "/a/../b/c.png" and below("/a", "/b/c.png", ["file:///b"]) == "/b/c.png"
    assert below("s3://b/x", "y/z.png") == "s3://b/x/y/z.png"
    assert below("s3://b/x", "s3://b/y.png") == "s3://b/y.png"
    assert below("/a", "https://h.org/p/q.png", ["https://H.org/p/"]) == "https://h.org/p/q.png"
    for folder, name, allowed in (
        ("s3://b/x", "/etc/passwd", []), ("s3://b/x", "s3://c/y.png", []), ("s3://b/x", "https://b/y.png", []),
        ("/a", "https://h.org/pq.png", ["https://h.org/p"]), ("/a", "https://h.org.evil/p", ["https://h.org"]),
        ("/a", "https://h.org/p/../q", ["https://h.org/p"]), ("/a", "https://h.org/p/%2e%2e/q", ["https://h.org/p"]),
        ("/a", "/bc/d.png", ["/b"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="leads out of|holds '..'"):
            below(folder, name, allowed)


def test_no_request_is_sent_because_of_a_line_and_the_job_goes_on(tmp_path):
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "a.png").write_bytes(picture(9))
        bad = [f"{protocol}://127.0.0.1:{server.server_port}/a.png" for protocol in ("http", "webhdfs", "ftp")]
        lines = [{"image": image, "prompt": "p"} for image in ("a.png", *bad, "zip://a.png::/etc/passwd", "a.png")]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        summary = run([tmp_path / "c.jsonl"], tmp_path / "out")
        server.shutdown()
    assert hits == [] and (summary.scored, summary.refused) == (2, 4)


def test_a_picture_that_cannot_be_fetched_is_refused_after_its_retries(tmp_path, monkeypatch):
    attempts = []

    def read(path, most):
        attempts.append(path)
        if path.endswith("late.png") and attempts.count(path) == 3:
            return picture(9)
        raise ConnectionError("the network is down")  # or anything else that a file system of fsspec raises

    monkeypatch.setattr(score_block.files, "read", read)
    monkeypatch.setattr(score_block, "_PAUSE", 0)
    memory = fsspec.filesystem("memory")
    names = ("late.png", "never.png")
    memory.pipe_file("/in/c.jsonl", "".join(json.dumps({"image": one, "prompt": "p"}) + "\n" for one in names).encode())
    try:
        summary = run(["memory://in/c.jsonl"], tmp_path / "out", batch_size=1)
    finally:
        memory.rm("/in", recursive=True)
    monkeypatch.undo()
    assert (summary.scored, summary.refused) == (1, 1) and len(attempts) == 6
    error = [row["error"] for row in table(tmp_path / "out")][1]
    assert error == "never.png: cannot be fetched in 3 attempts (the network is down)"


@pytest.mark.parametrize(
    "images, error",
    [
        (["/etc/passwd"], "column image: '/etc/passwd' leads out of {folder}; to allow it, give --images-from '/etc'"),
        ([0], "column image: expected bytes or a path, found int"),
        ([{"bytes": None, "path": "../a.png"}], "column image: '../a.png' leads out of {folder}; "),
        ([{"bytes": None, "path": None}], "column image: expected bytes or a path, found NoneType"),
        (pa.array([b"\xff"], pa.binary()).view(pa.string()), "image, prompt: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_columns_of_parquet_stay_data(tmp_path, images, error):
    pq.write_table(pa.table({"image": images, "prompt": ["p"]}), tmp_path / "a.parquet")
    assert run([tmp_path / "a.parquet"], tmp_path / "out").scored == 0
    assert table(tmp_path / "out")[0]["error"].startswith(error.format(folder=tmp_path))


def test_a_shard_without_the_columns_does_not_end_the_job(tmp_path):
    for name, columns in (("a", {"image": [picture(9)], "prompt": ["p"]}), ("b", {"img": [b"x"], "prompt": ["p"]})):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    summary = run([tmp_path / "*.parquet"], tmp_path / "out")
    assert (summary.scored, summary.refused) == (1, 1)
    assert "no column image or jpg" in table(tmp_path / "out")[1]["error"]


def test_a_group_and_a_prompt_of_one_name_are_two_groups(tmp_path):
    lines = [{"image": "a.png", "prompt": "x", "group": 17}, {"image": "a.png", "prompt": "17"}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert [(r.group, r.own_group) for r in records(Block(0, "jsonl", str(tmp_path / "c.jsonl"), 0, 1, 2))] == [
        ("17", True),
        ("17", False),
    ]
    (tmp_path / "c.jsonl").write_text('{"image": "a.png", "prompt": "x", "group": 1' + "0" * 4999 + "}")
    (record,) = records(Block(0, "jsonl", str(tmp_path / "c.jsonl"), 0, 1, 1))
    assert record.error.startswith(("not JSON (Exceeds the limit", "group: "))


# Which inputs and folders a job takes


def folder_of(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(picture(10))
    (tmp_path / "f" / "a.txt").write_text("one")
    return tmp_path / "f"


def change_picture(here):
    (here / "a.png").write_bytes(picture(10)[:-1] + b"\x00")


def change_prompt(here):
    (here / "a.txt").write_text("two")


@pytest.mark.parametrize("change", [change_picture, change_prompt])
@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "jsonl", "paths"])
def test_inputs_that_changed_under_their_names_are_refused(tmp_path, kind, change):
    here = folder_of(tmp_path)

    def write():
        image, prompt = (here / "a.png").read_bytes(), (here / "a.txt").read_text()
        if kind == "folder":
            return here
        if kind == "tar":
            return tar(tmp_path / "a.tar", [("a.png", image), ("a.txt", prompt.encode())])
        if kind == "jsonl":
            (here / "c.jsonl").write_text(json.dumps({"image": "a.png", "prompt": prompt}))
            return here / "c.jsonl"
        column = ["a.png"] if kind == "paths" else [image]
        pq.write_table(pa.table({"image": column, "prompt": [prompt]}), here / "a.parquet")
        return here / "a.parquet"

    run([write()], tmp_path / "out")
    change(here)
    with pytest.raises(ScoreError, match="the inputs or the block size differ.*or --restart"):
        run([write()], tmp_path / "out")


def test_a_shard_of_equal_size_and_time_is_told_apart_by_its_content(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.png", picture(10)), ("a.txt", b"one")])
    status = path.stat()
    run([path], tmp_path / "out")
    tar(path, [("a.png", picture(10)), ("a.txt", b"two")])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    with pytest.raises(ScoreError, match="the inputs or the block size differ"):
        run([path], tmp_path / "out")


def test_a_job_of_an_earlier_version_is_refused(tmp_path):
    here = folder_of(tmp_path)
    run([here], tmp_path / "out")
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    (tmp_path / "out" / "job.json").write_text(json.dumps(job | {"format": 1}))
    with pytest.raises(ScoreError, match="begun by an earlier version, which did not notice changed inputs"):
        run([here], tmp_path / "out")
    (tmp_path / "out" / "job.json").write_text("[" * 100_000)
    with pytest.raises(ScoreError, match="job.json: damaged; start again with --restart"):
        run([here], tmp_path / "out")


@pytest.mark.parametrize(
    "inputs, out",
    [
        (["f"], "f"), (["f"], "f/scores"), (["f/"], "f/a/b"), (["f/*"], "f/scores"), (["f/*.parquet"], "f"),
        (["?"], "f/scores"), (["f/*.jsonl"], "f"), (["link"], "f/scores"), (["f"], "link/scores"),
    ],
)  # fmt: skip
def test_out_inside_the_input_is_refused_at_once(tmp_path, inputs, out):
    here = folder_of(tmp_path)
    (tmp_path / "link").symlink_to(here)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ScoreError, match="lies in the input .*give a folder outside of it"):
        run([f"{tmp_path}/{one}" for one in inputs], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["scores", "f-scores", "pictures/scores"])
def test_out_beside_the_input_is_taken(tmp_path, out):
    here = folder_of(tmp_path)
    for _ in range(2):
        assert run([f"{tmp_path}/f*/a.png/..", here][1:], tmp_path / out).scored == 1


def test_two_jobs_in_one_folder(tmp_path):
    """The second is refused while the first writes; an unfinished part of another machine, by URL, is left alone."""
    here = folder_of(tmp_path)
    with files.locked(str(tmp_path / "out")):
        with pytest.raises(RuntimeError, match=f"process .{os.getpid()}. writes scores there; wait until it has ended"):
            run([here], tmp_path / "out")
    assert run([here], tmp_path / "out").scored == 1
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/out/.part-00000.parquet.12ab.unfinished", b"half")
    try:
        run([here], "memory://out")
        assert memory.exists("/out/.part-00000.parquet.12ab.unfinished")
        run([here], "memory://out")
        run([here], "memory://out", restart=True)
        assert not memory.exists("/out/.part-00000.parquet.12ab.unfinished")
    finally:
        memory.rm("/out", recursive=True)


def test_a_file_where_a_prompt_belongs(tmp_path, monkeypatch):
    here = folder_of(tmp_path)
    with pytest.raises(ArgumentError, match="--prompt: '.*a.txt' is a file, not a text; leave it out to read"):
        run([here], tmp_path / "out", options=ReadOptions(str(here / "a.txt")))
    assert not (tmp_path / "out").exists()


def test_links_in_archives_are_named(tmp_path):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = tar(tmp_path / "a.tar", [(link, b""), ("a.txt", b"a link")])
    (record,) = records(Block(0, "tar", str(path)))
    assert record.error == "no picture: a.png is a link or a device, not a file"
