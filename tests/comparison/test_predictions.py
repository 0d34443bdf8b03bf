"""The predictions file: read strictly, matched to examples, and nothing leads out of its folder."""

import json

import numpy as np
import pytest
from PIL import Image

from rahf.comparison.matching import RecordKey, match
from rahf.comparison.predictions import read_predictions
from rahf.core.errors import DataError

GOOD = {"uid": "a", "scores": {"overall": 0.5}}


def write(folder, *lines):
    file = folder / "predictions.jsonl"
    file.write_bytes(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines) + b"\n")
    return file


@pytest.mark.parametrize(
    "line, kind, reason",
    [
        (b'{"uid": "a", "scores": {"overall": NaN}}', "malformed", "no number of JSON"),
        (b'{"uid": "a", "uid": "b", "scores": {}}', "malformed", "occurs twice"),
        (b'{"uid": "a", "scores": {"overall": 0.5}} x', "malformed", "not JSON"),
        (b'{"uid": "\xff"}', "malformed", "not JSON"),
        (b"[" * 100_000, "malformed", "not JSON"),
        (b'{"uid": "a", "scores": {"overall": ' + b"9" * 5000 + b"}}", "malformed", "not JSON"),
        (b'{"uid": "' + b"a" * 1_000_001 + b'"}', "malformed", "longer than"),
        ([GOOD], "malformed", "expected an object"),
        ({"scores": {"overall": 0.5}}, "malformed", "neither uid nor image nor prompt"),
        ({"uid": True, "scores": {"overall": 0.5}}, "malformed", "uid is True"),
        ({"uid": "a"}, "malformed", "no prediction"),
        ({"uid": "a", "scores": {"overall": None}}, "malformed", "no prediction"),
        ({"uid": "a", "scores": [0.5]}, "bad score", "expected an object"),
        ({"uid": "a", "scores": {"overal": 0.5}}, "bad score", "Did you mean 'overall'?"),
        ({"uid": "a", "scores": {"overall": 1.5}}, "bad score", "expected a number in [0, 1]"),
        ({"uid": "a", "scores": {"overall": "0.5"}}, "bad score", "expected a number in [0, 1]"),
        ({"uid": "a", "scores": {"overall": True}}, "bad score", "expected a number in [0, 1]"),
        ({"uid": "a", "word_labels": [1, True]}, "bad words", "expected a list of 1"),
        ({"uid": "a", "word_probabilities": [0.5, None]}, "bad words", "expected numbers in [0, 1]"),
        ({"uid": "a", "word_labels": [1], "word_probabilities": [0.1, 0.2]}, "bad words", "1 word_labels, but 2"),
        ({"uid": "a", "implausibility": "../outside.png"}, "bad map", "leads out of the folder"),
        ({"uid": "a", "implausibility": "link.png"}, "bad map", "leads out of the folder"),
        ({"uid": "a", "implausibility": "/etc/passwd"}, "bad map", "leads out of the folder"),
        ({"uid": "a", "implausibility": "https://example.org/a.png"}, "bad map", "a URL"),
        ({"uid": "a", "implausibility": "missing.png"}, "bad map", "No such file"),
        ({"uid": "a", "implausibility": "colour.png"}, "bad map", "colours"),
        ({"uid": "a", "implausibility": "."}, "bad map", ""),
        ({"uid": "a", "implausibility": 5}, "bad map", "expected the path"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused_with_the_reason(tmp_path, line, kind, reason):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("../outside.png", "grey.png"):
        Image.fromarray(np.full((4, 4), 9, np.uint8)).save(folder / name)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)).save(folder / "colour.png")
    file = read_predictions(write(folder, GOOD, line))
    assert [one.uid for one in file.lines] == ["a"]
    (refused,) = file.refused
    assert (refused.line, refused.kind) == (2, kind)
    assert reason in refused.reason and len(refused.reason) <= 300 and "images-from" not in refused.reason
    assert file.refusal_counts() == {kind: 1}


def test_a_line_is_read_as_it_says(tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "map.png")
    faint = np.full((2, 2), 300, np.uint16)  # less than 1/200 of 65535: a network may predict that
    Image.fromarray(faint).save(tmp_path / "faint.png")
    line = {"uid": 7, "scores": {"overall": 1, "alignment": None}, "word_probabilities": [0.5, 0.51], "other": 1}
    line |= {"implausibility": "map.png", "misalignment": "faint.png", "model": "mine"}
    file = read_predictions(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(line).encode(), b"", b"  "))
    assert (file.name, file.unread, file.refused) == ("mine", {"other": 1}, [])
    (one,) = file.lines
    predicted = one.read()
    assert one.uid == "7"
    np.testing.assert_array_equal(predicted.scores, [np.nan, np.nan, np.nan, 1])
    assert predicted.word_labels == (1, 0)
    np.testing.assert_allclose(predicted.heatmaps[0], values / 255, rtol=1e-6)
    np.testing.assert_allclose(predicted.heatmaps[1], 1 / 255, rtol=1e-6)


def test_a_file_without_a_usable_line_is_an_error(tmp_path):
    with pytest.raises(DataError, match="line 1: no prediction"):
        read_predictions(write(tmp_path, {"uid": "a"}))
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path)


def test_lines_find_their_examples(tmp_path):
    records = [
        RecordKey("a", "a red cat", 3),
        RecordKey("test/b.png", "two dogs", 2),
        RecordKey("c", "same", 1),
        RecordKey("d", "same", 1),
        RecordKey("e", "one bird", 2),
    ]
    scores = {"scores": {"overall": 0.5}}
    file = read_predictions(
        write(
            tmp_path,
            {"uid": "a", "prompt": "a  red cat"} | scores,
            {"image": "elsewhere\\b.jpg"} | scores,
            {"prompt": "one bird", "word_labels": [1, 0]},
            {"prompt": "same"} | scores,
            {"uid": "z"} | scores,
            {"uid": "c", "prompt": "other"} | scores,
            {"uid": "c", "word_labels": [1, 0]},
            {"uid": "a"} | scores,
        )
    )
    lines, refused = match(file, records)
    assert {place: line.number for place, line in lines.items()} == {0: 1, 1: 2, 4: 3}
    kinds = {one.line: one.kind for one in refused}
    expected = {4: "no such example", 5: "no such example", 6: "another prompt", 7: "word mismatch", 8: "twice"}
    assert kinds == expected
