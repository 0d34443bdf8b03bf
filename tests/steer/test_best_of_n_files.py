"""`rahf select`: from a file of candidates to the manifest, interrupted or not, with bad records among them."""

import json
import weakref

import numpy as np
import pytest

from rahf.cli import main as cli
from rahf.core.errors import ScoreError
from rahf.scoring import score_block
from rahf.steer.best_of_n_files import SelectionOptions, select_files
from tests.helpers.critic_maker import ColourCritic, plain
from tests.helpers.image_maker import encode

REDS = (200, 100, 50, 51, 0, 255)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    """Files need not survive a power cut here, and a busy disk takes a tenth of a second for each."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path):
    """Six candidates of two prompts, in a folder of their own."""
    here = tmp_path / "candidates"
    (here / "pictures").mkdir(parents=True)
    lines = []
    for number, red in enumerate(REDS):
        (here / "pictures" / f"{number}.png").write_bytes(encode(plain(red, 100, 60)))
        prompt = "a leaf" if number < 3 else "a rose"
        lines.append({"image": f"pictures/{number}.png", "prompt": prompt, "seed": 10 + number})
    write(here, lines)
    return here


def write(folder, lines):
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    (folder / "candidates.jsonl").write_text(text)


def run(folder, choice=SelectionOptions(), out="manifest.jsonl", **options):
    options = {"load": lambda path: ColourCritic(), "batch_size": 2, "block_size": 2} | options
    return select_files("model", folder / "candidates.jsonl", folder / out, choice, **options)


def manifest(folder, out="manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / out).read_text().splitlines()]


def test_manifest_has_every_score_and_reason(folder):
    done = run(folder)
    lines = manifest(folder)
    assert [one["line"] for one in lines] == [1, 2, 3, 4, 5, 6]
    assert [one["selected"] for one in lines] == [False, False, True, False, True, False]
    assert [one["rank"] for one in lines] == [3, 2, 1, 2, 1, 3]
    for number, (one, red) in enumerate(zip(lines, REDS)):
        assert one["image"] == f"pictures/{number}.png" and one["seed"] == 10 + number
        expected = [1 - red / 255, 100 / 255, 60 / 255, (1 - red / 255 + 160 / 255) / 3]
        np.testing.assert_allclose(list(one["scores"].values()), expected, atol=1e-6)
        assert list(one["scores"]) == ["plausibility", "alignment", "aesthetics", "overall"]
        assert one["model"] == "colours-1" and one["prompt_cut"] is False
    assert lines[2]["reason"] == "plausibility 0.8039, best of 3 in its group, 0.1961 above line 2"
    assert lines[0]["reason"] == "plausibility 0.2157; line 3 of its group has 0.8039"
    assert lines[2]["gap"] == pytest.approx(50 / 255, abs=2e-6) and lines[0]["gap"] is None
    assert (done.candidates, done.selected, done.groups, done.threshold) == (6, 2, 2, None)
    summary = json.loads((folder / "manifest.summary.json").read_text())
    assert summary["selected"] == 2 and summary["model"] == "colours-1" and summary["choice"]["key"] == "plausibility"
    assert (folder / "manifest.refused.jsonl").read_text() == ""


def test_options_reach_the_choice(folder):
    done = run(
        folder,
        SelectionOptions("plausibility", threshold=0.9, require=("alignment>=0.3",)),
        chosen=folder / "best.jsonl",
    )
    assert [one["selected"] for one in manifest(folder)] == [False] * 4 + [True, False] and done.threshold == 0.9
    candidates = (folder / "candidates.jsonl").read_text().splitlines()
    assert (folder / "best.jsonl").read_text() == candidates[4] + "\n"


@pytest.mark.parametrize(
    "own, prefix",
    [
        ({"model": "sdxl-1.0"}, "rahf_"),
        ({"scores": {"human": 3}, "rank": 7, "reason": "mine"}, "rahf_"),
        ({"gap": 1, "rahf_gap": 2}, "rahf2_"),
        ({"rahf_gap": 2}, ""),
    ],
)
def test_a_candidates_own_fields_are_kept(folder, own, prefix):
    lines = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    write(folder, [*lines[:-1], lines[-1] | own])
    done = run(folder, chosen=folder / "best.jsonl")
    assert done.prefix == prefix and json.loads(done.summary.read_text())["prefix"] == prefix
    entries = manifest(folder)
    assert {name: entries[-1][name] for name in own} == own
    assert [one[f"{prefix}rank"] for one in entries] == [3, 2, 1, 2, 1, 3]
    assert entries[0][f"{prefix}model"] == "colours-1"
    (folder / "candidates.jsonl").write_bytes((folder / "manifest.jsonl").read_bytes())  # candidates once more
    again = run(folder, out="again.jsonl")
    assert again.prefix not in ("", prefix) and entries[0].items() <= manifest(folder, "again.jsonl")[0].items()


def test_groups_that_look_alike(folder):
    """A group 17 is not the prompt "17"; prompts that are the same to the network are one group."""
    same = {"prompt": "caf\u00e9 one"}, {"prompt": "cafe\u0301  one"}, {"prompt": "17"}
    other = {"prompt": "x", "group": 17}, {"prompt": "y", "group": "17"}, {"prompt": "z", "group": "e\u0301"}
    more = {"prompt": "z", "group": "\u00e9"}
    write(folder, [{"image": "pictures/0.png"} | one for one in (*same, *other, more)])
    done = run(folder)
    assert done.groups == 4  # café one, the prompt 17, the group 17, the group é
    assert [one["rank"] for one in manifest(folder)] == [1, 2, 1, 1, 2, 1, 2]


def test_pictures_elsewhere_only_if_that_is_allowed(folder):
    write(folder, [{"image": str(folder / "pictures" / "0.png"), "prompt": "x"}])
    (folder / "sub").mkdir()
    (folder / "candidates.jsonl").rename(folder / "sub" / "candidates.jsonl")
    with pytest.raises(ScoreError, match="none of 1 candidates"):
        run(folder / "sub")
    done = run(folder / "sub", restart=True, images_from=[str(folder / "pictures")])
    assert done.candidates == 1


def test_groups_of_ones_own(folder):
    lines = [{"image": f"pictures/{n}.png", "prompt": "a leaf", "group": n // 2} for n in range(6)]
    write(folder, lines)
    assert run(folder).groups == 3
    assert [one["selected"] for one in manifest(folder)] == [False, True, True, False, True, False]


BAD = [
    ("{broken", "line 4", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ("[1, 2]", "line 5", "expected an object with image and prompt, found list"),
    ({"prompt": "a leaf"}, "line 6", "image: expected a path"),
    ({"image": 3, "prompt": "a leaf"}, "line 7", "image: expected a path, found 3"),
    ({"image": "pictures/0.png"}, "pictures/0.png", "no prompt"),
    ({"image": "pictures/0.png", "prompt": "  "}, "pictures/0.png", "the prompt is empty"),
    ({"image": "pictures/0.png", "prompt": 5}, "pictures/0.png", "prompt: expected text, found int"),
    ({"image": "pictures/0.png", "prompt": "\ud800"}, "pictures/0.png", "the prompt is not valid Unicode"),
    (
        {"image": "pictures/0.png", "prompt": "x", "group": [1]},
        "pictures/0.png",
        "group: expected text or a whole number, found list",
    ),
    ({"image": "nowhere.png", "prompt": "x"}, "nowhere.png", "nowhere.png: No such file or directory"),
    ({"image": "a\0b.png", "prompt": "x"}, "line 14", r"image: not a path: 'a\x00b.png'"),
    ({"image": "broken.png", "prompt": "x"}, "broken.png", "broken.png: truncated or damaged PNG"),
    ({"image": "text.png", "prompt": "x"}, "text.png", "text.png: not an image that can be read"),
    ({"image": "pictures", "prompt": "x"}, "pictures", "pictures: Is a directory"),
    ('{"image": "' + "x" * 1_000_000 + '"}', "line 18", "the line is longer than 1000 kB"),
    ("[" * 100_000, "line 19", "not JSON ("),
]  # fmt: skip


def test_bad_records_are_refused_and_the_others_go_on(folder):
    (folder / "broken.png").write_bytes(encode(plain(1, 2, 3, (99, 99)))[:150])
    (folder / "text.png").write_text("hello")
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    write(folder, [*lines[:3], *(one for one, _, _ in BAD), "", *lines[3:]])
    done = run(folder)
    assert (done.candidates, done.selected, done.scoring.refused) == (6, 2, len(BAD))
    assert [one["line"] for one in manifest(folder)] == [1, 2, 3, 21, 22, 23]
    refused = [json.loads(line) for line in (folder / "manifest.refused.jsonl").read_text().splitlines()]
    for (number, (_, image, reason)), line in zip(enumerate(BAD, 4), refused, strict=True):
        assert (line["line"], line["image"]) == (number, image)
        assert line["reason"].startswith(reason), line


def test_nothing_to_choose_from_is_an_error(folder):
    write(folder, [{"image": "nowhere.png", "prompt": "x"}])
    with pytest.raises(ScoreError, match="none of 1 candidates can be scored; see .*refused.jsonl"):
        run(folder)
    (folder / "candidates.jsonl").write_text("")
    with pytest.raises(ScoreError, match="no records in"):
        run(folder, out="other.jsonl")


def written(folder, out="manifest") -> dict[str, bytes]:
    """Everything that a call has written, by name."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0].startswith(out)]
    assert not [p for p in files if p.name.startswith(".")]
    return {str(p.relative_to(folder)).removeprefix(out): p.read_bytes() for p in files}


@pytest.mark.parametrize("at", [1, 2, 3])
def test_interrupted_and_restarted_it_ends_with_the_same_bytes(folder, at):
    run(folder, out="whole.jsonl")

    class Stopping(ColourCritic):
        def __call__(self, *given, **options):
            if len(self.calls) == at - 1:
                raise KeyboardInterrupt
            return super().__call__(*given, **options)

    with pytest.raises(KeyboardInterrupt):
        run(folder, load=lambda path: Stopping())
    assert not (folder / "manifest.jsonl").exists()
    # A kill also leaves what was being written.
    (folder / "manifest.scores" / ".part-00001.parquet.123.unfinished").write_text("half")
    critic = ColourCritic()
    run(folder, load=lambda path: critic)
    assert critic.calls == [2] * (4 - at)  # what was done is not done again
    assert written(folder, "manifest") == written(folder, "whole")


def test_another_choice_needs_no_model(folder):
    run(folder)

    def load(path):
        raise AssertionError

    run(folder, SelectionOptions(best_of=False, quantile=0.5), load=load)
    assert [one["selected"] for one in manifest(folder)] == [False, False, True, True, True, False]


def test_scores_of_other_candidates_or_another_model_are_not_mixed(folder):
    run(folder)
    lines = (folder / "candidates.jsonl").read_text()
    (folder / "candidates.jsonl").write_text(lines.replace("a rose", "a tree"))
    with pytest.raises(
        ScoreError, match="another job .the inputs or the block size differ.; give another folder, or --restart"
    ):
        run(folder)
    run(folder, restart=True)
    assert manifest(folder)[4]["prompt"] == "a tree"
    (folder / "manifest.scores" / "part-00001.parquet").unlink()

    class Other(ColourCritic):
        model_id = "colours-2"

    with pytest.raises(
        ScoreError, match="begun with the model colours-1, but this is colours-2; their scores do not compare"
    ):
        run(folder, load=lambda path: Other())


def test_a_damaged_part_is_named(folder):
    run(folder)
    (folder / "manifest.scores" / "part-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ScoreError, match="part-00001.parquet: damaged .*delete it, and start the job again"):
        run(folder)


def test_files_must_differ_and_options_are_checked_before_scoring(folder):
    with pytest.raises(ScoreError, match="must be different files"):
        run(folder, out="candidates.jsonl")
    with pytest.raises(ScoreError, match="must be different files"):
        run(folder, chosen=folder / "manifest.jsonl")
    with pytest.raises(ValueError, match="no score is called 'beauty'"):
        run(folder, SelectionOptions("beauty"))
    (folder / "candidates.json").write_text("")
    with pytest.raises(ScoreError, match="expected a local file of candidates whose name ends in .jsonl"):
        select_files("model", folder / "candidates.json", folder / "m.jsonl")
    assert not (folder / "manifest.scores").exists()


def test_prompts_that_are_cut_are_counted(folder):
    lines = (folder / "candidates.jsonl").read_text()
    (folder / "candidates.jsonl").write_text(lines.replace("a rose", "a rose that is red like the evening"))
    done = run(folder, batch_size=6, block_size=6)
    assert [one["prompt_cut"] for one in manifest(folder)] == [False] * 3 + [True] * 3
    assert done.scoring.prompts_cut == 3


def test_pictures_are_alive_only_while_they_wait(folder, monkeypatch):
    """400 candidates, batches of 4: at most two batches of decoded pictures exist at any time."""
    lines = [{"image": f"pictures/{n % 6}.png", "prompt": f"a leaf {n // 8}"} for n in range(400)]
    write(folder, lines)
    alive, most = set(), []

    class Tracked(np.ndarray):
        pass

    decode = score_block.decode

    def tracked(record, side):
        square, error = decode(record, side)
        square = square.view(Tracked)
        token = object()
        alive.add(token)
        weakref.finalize(square, alive.discard, token)
        most.append(len(alive))
        return square, error

    monkeypatch.setattr(score_block, "decode", tracked)
    done = run(folder, batch_size=4, block_size=400)
    assert done.candidates == len(most) == 400 and done.groups == 50
    assert 4 < max(most) <= 8 and not alive


def test_the_command(folder, tiny_run, capsys):
    """With a real network, twice, to the same bytes."""
    for out in ("one.jsonl", "two.jsonl"):
        arguments = ["--out", str(folder / out), "--min-gap", "0", "--quantile", "0.5", "--require", "alignment>=0"]
        arguments += ["--chosen", str(folder / f"best-{out}"), "--batch-size", "4"]
        assert cli.main(["select", str(tiny_run), str(folder / "candidates.jsonl"), *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    threshold = json.loads((folder / "one.summary.json").read_text())["threshold"]
    assert (
        printed[0]
        == f"1 of 6 candidates chosen from 2 groups, plausibility at least {threshold:.4f}: {folder}/one.jsonl"
    )
    assert written(folder, "one") == written(folder, "two")
    entries = manifest(folder, "one.jsonl")
    assert len({tuple(one["scores"].values()) for one in entries}) == 6
    assert len((folder / "best-one.jsonl").read_text().splitlines()) == 1
    assert cli.main(["select", str(tiny_run), "nowhere.jsonl", "--out", str(folder / "x.jsonl")]) == 1
    assert "No such file" in capsys.readouterr().err
