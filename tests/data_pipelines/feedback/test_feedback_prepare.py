"""`rahf prepare feedback`: partial annotators by hand, equality with consolidation, splits, the run as a whole."""

import io
import itertools
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data_pipelines import store
from data_pipelines.feedback import folder, splits
from data_pipelines.feedback.prepare import prepare
from data_pipelines.prepare.consolidate import RawAnnotation, consolidate
from data_pipelines.prepare.splits import SPLITS
from data_pipelines.store import write as write_lib
from rahf import text
from rahf.cli import main as cli
from rahf.core.batch import HEATMAPS, SCORES
from tests.helpers.feedback_maker import HEIGHT, PROMPT, WIDTH, grey, picture, records, run, write_three
from tests.helpers.richhf18k_maker import contents, encode, kinds, refused


def test_for_each_label_only_those_count_who_gave_it(tmp_path):
    picture(tmp_path / "pictures/deep/a.png")
    here, far = [20.0, 10.0], [50, 30]
    annotators = [
        {"scores": {"overall": 2, "aesthetics": None}, "points_implausible": [here, [20, 11]]},
        {"scores": {"overall": 5, "alignment": 4}, "points_implausible": [], "word_labels": [1, 0, 0]},
        {"word_labels": [0, 0, 1], "points_implausible": None, "points_misaligned": [far]},
        {"word_labels": [1, 1, 0], "scores": {"overall": 5}, "points_implausible": [here]},
        {"points_misaligned": []},
        {},
    ]
    summary, by_uid = run(tmp_path, [{"image": "deep/a.png", "prompt": PROMPT, "annotators": annotators}])
    record = by_uid["deep/a.png"]
    assert record.image == (tmp_path / "pictures/deep/a.png").read_bytes()
    assert (record.prompt, record.words) == (PROMPT, ("a", "red", "cat"))
    # Overall of three: mean 4; alignment of one: 4. Both are (4 - 1) / 4.
    np.testing.assert_array_equal(record.scores, np.float32([np.nan, 0.75, np.nan, 0.75]))
    assert record.word_labels == (1, 0, 0)
    implausible, misaligned = grey(record.implausibility), grey(record.misalignment)
    assert implausible.shape == misaligned.shape == (HEIGHT, WIDTH)
    # Three were asked for implausible places, two of them marked this one; the radius is 40 / 20 = 2.
    assert implausible[10, 20] == 170 and implausible[10, 26] == 0 and set(np.unique(implausible)) == {0, 85, 170}
    assert misaligned[30, 50] == 128 and misaligned[10, 20] == 0  # one of two
    assert kinds(summary) == {
        "records": 1, "joined": 1, "alignment": 1, "overall": 1, "implausibility": 1, "misalignment": 1, "words": 1,
    }  # fmt: skip
    assert "no training example has plausibility, aesthetics: nothing is learnt" in "\n".join(summary.remarks())


def test_what_nobody_said_is_missing_and_an_empty_list_is_an_empty_map(tmp_path):
    for name in ("none", "empty", "score", "words"):
        picture(tmp_path / f"pictures/{name}.png")
    lines = [
        {"image": "none.png", "prompt": PROMPT, "annotators": [{"points_misaligned": None, "scores": {"overall": 1}}]},
        {"image": "empty.png", "prompt": PROMPT, "annotators": [{"points_misaligned": []}]},
        {"image": "score.png", "prompt": PROMPT, "scores": {"overall": True, "alignment": 0.3, "aesthetics": None}},
        {"image": "words.png", "prompt": PROMPT, "word_labels": [1, 0, 1], "annotators": [{"scores": {"overall": 5}}]},
    ]
    _, by_uid = run(tmp_path, lines)
    assert by_uid["none.png"].misalignment is None and by_uid["none.png"].implausibility is None
    assert by_uid["empty.png"].implausibility is None and not grey(by_uid["empty.png"].misalignment).any()
    assert np.isnan(by_uid["empty.png"].scores).all()
    np.testing.assert_array_equal(by_uid["score.png"].scores, np.float32([np.nan, 0.3, np.nan, 1]))
    assert by_uid["words.png"].word_labels == (1, 0, 1) and by_uid["words.png"].scores[3] == 1


def test_maps_from_files(tmp_path):
    plain = encode(np.pad(np.full((4, 5), 200, np.uint8), 3))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/map.png").write_bytes(plain)
    (tmp_path / "pictures/map.jpg").write_bytes(encode(np.full((10, 11, 3), 80, np.uint8), "JPEG"))
    for name in "abc":
        picture(tmp_path / f"pictures/{name}.png")
    click = [{"points_misaligned": [[20, 10]]}]
    lines = [
        {"image": "a.png", "prompt": PROMPT, "implausibility": "map.png", "misalignment": "map.jpg"},
        {"image": "b.png", "prompt": PROMPT, "implausibility": "map.png"},
        {"image": "c.png", "prompt": PROMPT, "implausibility": "map.png", "annotators": click},
    ]
    _, by_uid = run(tmp_path, lines)
    assert by_uid["a.png"].implausibility == plain  # the very bytes
    assert (grey(by_uid["a.png"].misalignment) == 80).all() and by_uid["a.png"].scores.shape == (4,)
    assert by_uid["b.png"].implausibility == plain and by_uid["b.png"].misalignment is None
    # Two maps of one picture have one size: that of the picture, where clicks are.
    assert grey(by_uid["c.png"].implausibility).shape == grey(by_uid["c.png"].misalignment).shape == (HEIGHT, WIDTH)
    assert grey(by_uid["c.png"].implausibility).max() == 200
    _, by_uid = run(tmp_path, lines, map_size=32)
    assert {grey(m).shape for r in by_uid.values() for m in (r.implausibility, r.misalignment) if m} == {(32, 32)}


def test_pictures_are_stored_upright_and_points_are_in_the_pixels_that_were_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn: 40 wide, 60 high
    picture(tmp_path / "pictures/turned.jpg", exif=exif)
    picture(tmp_path / "pictures/half.png")
    click = [{"points_implausible": [[15, 5]]}]
    lines = [
        {"image": "turned.jpg", "prompt": PROMPT, "annotators": click},
        {"image": "half.png", "prompt": PROMPT, "annotators": click, "width": WIDTH // 2, "height": HEIGHT // 2},
        {"uid": "turned", "prompt": PROMPT, "annotators": click, "width": WIDTH, "height": HEIGHT},
        {"uid": "half", "prompt": PROMPT, "annotators": click, "width": WIDTH},
    ]
    summary, by_uid = run(tmp_path, lines)
    assert Image.open(io.BytesIO(by_uid["turned.jpg"].image)).size == (HEIGHT, WIDTH)
    assert grey(by_uid["turned.jpg"].implausibility)[5, 15] == 255
    half = grey(by_uid["half.png"].implausibility)
    assert half.shape == (HEIGHT // 2, WIDTH // 2) and half[5, 15] == 255
    assert kinds(summary)["malformed"] == 2
    assert "60 and 40, but the picture has 40 x 60 pixels" in refused(tmp_path / "out")[0]["reason"]


def test_the_synthetic_raters_give_the_records_that_consolidation_gives(tmp_path):
    from data_pipelines.synthetic.scene import record, scene

    scenes = [scene(3, "train", number, 48) for number in range(3)]
    lines = []
    for number, one in enumerate(scenes):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(one.image).save(tmp_path / f"pictures/{number}.png")
        annotations = [annotation._asdict() for annotation in one.annotations]
        lines.append({"uid": number, "prompt": one.prompt, "annotators": annotations})
    _, by_uid = run(tmp_path, lines)
    for number, one in enumerate(scenes):
        expected, stored = record(one), by_uid[str(number)]
        assert (stored.prompt, stored.words, stored.word_labels) == expected[1:4]
        np.testing.assert_array_equal(stored.scores, expected.scores)
        for name in HEATMAPS:
            np.testing.assert_array_equal(grey(getattr(stored, name)), grey(getattr(expected, name)))


def test_rehearsal_annotations_give_the_released_labels(shared, tmp_path):
    from data_pipelines.richhf18k import labels, tfrecord

    source = shared / "data" / "rehearsal"
    examples = [entry.features for entry in itertools.islice(tfrecord.read_examples(source / "test.tfrecord"), 30)]
    released = {labels.uid_of(features): labels.read_labels(features) for features in examples}
    with open(source / "annotations.jsonl") as file:
        lines = [line for line in map(json.loads, file) if line["uid"] in released]
    (tmp_path / "pictures").mkdir()
    for number, line in enumerate(lines):  # labels do not depend on what is to be seen
        file = tmp_path / f"pictures/{line['uid']}{('.jpg', '.png', '.WEBP')[number % 3]}"
        Image.new("RGB", (42, 42), "red").save(file)
    summary, by_uid = run(tmp_path, lines, map_size=512)
    assert summary.share == 1 and len(by_uid) == 30
    for uid, record in by_uid.items():
        np.testing.assert_array_equal(record.scores, released[uid].scores)
        assert record.word_labels == released[uid].word_labels
        for name in HEATMAPS:
            np.testing.assert_array_equal(grey(getattr(record, name)), grey(getattr(released[uid], name)))


def test_all_annotators_complete_is_plain_consolidation(tmp_path):
    annotations = [
        RawAnnotation([(8.5, 9)], [], dict(zip(SCORES, (1, 2, 3, 4))), (0, 1, 0)),
        RawAnnotation([], [(30, 20), (31, 22)], dict(zip(SCORES, (2, 2, 5, 5))), (1, 1, 0)),
    ]
    picture(tmp_path / "pictures/a.png")
    annotators = [one._asdict() for one in annotations]
    _, by_uid = run(tmp_path, [{"image": "a.png", "prompt": PROMPT, "annotators": annotators}])
    expected = consolidate(annotations, WIDTH, HEIGHT, PROMPT.split())
    np.testing.assert_array_equal(by_uid["a.png"].scores, expected.scores)
    assert by_uid["a.png"].word_labels == expected.word_labels == (1, 1, 0)
    assert (grey(by_uid["a.png"].implausibility) == expected.heatmaps[..., 0]).all()


def test_fields_that_mean_nothing_are_reported(tmp_path):
    picture(tmp_path / "pictures/a.png")
    annotators = [{"scores": {"overall": 3, "charm": 2}, "word_label": [1], "points_implausible": [[900, 3]]}] * 2
    summary, _ = run(
        tmp_path, [{"image": "a.png", "prompt": PROMPT, "seed": 7, "\x1b[31m\ud83d": 0, "annotators": annotators}]
    )
    assert summary.unread == {"seed": 1, "'\\x1b[31m\\ud83d'": 1, "scores.charm": 1, "annotators.word_label": 1}
    remarks = "\n".join(summary.remarks())
    assert "fields that are not read: seed (1), " in remarks and "1 examples have points outside" in remarks


# Splits


def test_prompts_stay_together_and_the_split_of_one_does_not_depend_on_the_others(tmp_path):
    picture(tmp_path / "pictures/a.png")
    lines = [
        {"image": "a.png", "uid": f"{number} {variant}", "prompt": prompt, "scores": {"overall": 1}}
        for number in range(30)
        for variant, prompt in enumerate((f"{number} red cats.", f"{number}  Red cats"))
    ]
    summary, _ = run(tmp_path, lines, dev=0.2, test=0.3)
    own = {split: {r.uid for r in store.open_split(tmp_path / "out", split)} for split in SPLITS}
    for number in range(30):
        (split,) = {split for split in own if own[split] & {f"{number} 0", f"{number} 1"}}
        assert {f"{number} 0", f"{number} 1"} <= own[split]
        assert split == splits.by_hash(splits.key(f"{number} RED cats!"), 0.2, 0.3)
    assert min(map(len, own.values())) >= 4
    assert "1 pictures are in train and, with another prompt, in dev or test" in "\n".join(summary.remarks())
    share = 0.7929557669818671  # the first 8 bytes of `printf "1 red cats" | sha256sum`, over 2**64
    assert [splits.by_hash("1 red cats", 0, test) for test in (share - 1e-9, share + 1e-9)] == ["train", "test"]


def test_larger_shares_move_nothing_out_of_the_test():
    keys = [f"prompt {number}" for number in range(300)]
    small, large = ({k for k in keys if splits.by_hash(k, 0.1, test) == "test"} for test in (0.1, 0.3))
    assert small < large


def test_lines_may_name_their_split_and_others_follow(tmp_path):
    picture(tmp_path / "pictures/a.png")
    lines = [
        {"uid": "named test", "prompt": "a", "split": "test"},
        {"uid": "follows", "prompt": "A"},
        {"uid": "named train", "prompt": "b", "split": "train"},
        {"uid": "against", "prompt": "a", "split": "train"},
        {"uid": "hashed", "prompt": "c"},
        {"uid": "twice", "prompt": "d", "split": "train"},
        {"uid": "twice", "prompt": "e", "split": "test"},
    ]
    summary, _ = run(tmp_path, [{"image": "a.png", "scores": {"overall": 1}, **line} for line in lines])
    own = {name: [r.uid for r in store.open_split(tmp_path / "out", name)] for name in store.splits(tmp_path / "out")}
    assert own == {"train": ["named train", "against", "hashed"], "test": ["named test", "follows", "twice"]}
    assert refused(tmp_path / "out")[0]["line"] == 6  # what is in the test, too, is not trained on
    remarks = "\n".join(summary.remarks())
    assert "5 by their field 'split', 1 like another line with their prompt, 1 by a hash of the prompt" in remarks
    assert "1 prompts are in train and in dev or test" in remarks
    assert "no example in dev; held out there is test (--dev, --data.eval-split)" in remarks


# The run as a whole


@pytest.fixture
def three(tmp_path):
    return write_three(tmp_path)


def test_the_command_prints_its_table_and_the_data_can_be_opened(three, capsys):
    annotations, images, out = map(str, three)
    arguments = ["prepare", "feedback", "--annotations", annotations, "--images", images, "--out", out]
    assert cli.main([*arguments, "--dev", "0", "--test", "0", "--map-size", "16"]) == 0
    printed = capsys.readouterr().out
    assert "used 3 of 3 records (100.0%)" in printed and "missing image" in printed
    assert store.splits(out) == {"train": 3}
    assert text.load_tokenizer(store.tokenizer_path(out)).encode("a red cat")
    assert cli.main([*arguments, "--dev", "0.5", "--test", "0.5"]) == 1
    assert capsys.readouterr().err == (
        "rahf: --dev 0.5 and --test 0.5 leave nothing to train on; their sum must be less than 1\n"
    )


def test_the_same_inputs_give_the_same_bytes_and_a_finished_run_is_not_done_again(three, tmp_path, monkeypatch):
    annotations, images, out = three
    options = {"dev": 0, "test": 0, "progress": False}
    first = prepare(*three, **options)
    before = contents(out)
    prepare(annotations, images, tmp_path / "again", **options)
    assert contents(tmp_path / "again") == before
    monkeypatch.setattr(store, "write_dataset", None)  # a second writing would fail
    assert prepare(*three, **options) == first
    assert contents(out) == before
    monkeypatch.undo()
    with open(images / "a.png", "ab") as file:
        file.write(b" ")  # a picture has changed
    prepare(*three, **options)
    assert records(out)["a.png"].image.endswith(b" ")
    (tmp_path / "mine.model").write_bytes(text.train_tokenizer(["one two three"], 400))
    prepare(*three, tokenizer=tmp_path / "mine.model", **options)
    assert store.tokenizer_path(out).read_bytes() == (tmp_path / "mine.model").read_bytes()


def test_the_vocabulary_is_learnt_from_the_prompts_that_are_trained_on(tmp_path):
    picture(tmp_path / "pictures/a.png")
    lines = [{"image": "a.png", "uid": p, "prompt": p, "split": s, **{"scores": {"overall": 1}}} for s, p in (
        ("train", "zebra zebra zebra"), ("train", "zebra stripes"), ("test", "walrus walrus walrus"),
    )]  # fmt: skip
    lines.append({"image": "absent.png", "prompt": "walrus walrus", "split": "train", "scores": {"overall": 1}})
    run(tmp_path, lines)
    expected = text.train_tokenizer(["zebra zebra zebra", "zebra stripes"])
    assert store.tokenizer_path(tmp_path / "out").read_bytes() == expected


def test_one_picture_at_a_time(three, monkeypatch):
    """A record is written before the next picture is read, but for the one that the writer looks ahead."""
    events = []
    read, checked = folder.Folder.read, write_lib._check  # called for each record as it is written
    monkeypatch.setattr(folder.Folder, "read", lambda *a: events.append("read") or read(*a))
    monkeypatch.setattr(write_lib, "_check", lambda *a: events.append("write") or checked(*a))
    prepare(*three, dev=0, test=0, progress=False)
    assert events == ["read", "write", "read", "write", "read", "write"]


def test_prompts_that_the_network_reads_alike_share_a_split():
    for number in range(50):
        prompt = f"caf\u00e9 number {number}"
        assert splits.key(prompt) == splits.key(unicodedata.normalize("NFD", prompt))
        assert splits.key(f"x\u00b2 {number}") == splits.key(f"x2 {number}")
