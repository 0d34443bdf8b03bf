"""`rahf prepare feedback --check`: every fault with line and field, and exactly the lines that `prepare` refuses."""

import json

import jsonschema
import pytest

from data_pipelines.feedback import check
from data_pipelines.feedback.lines import FIELDS
from data_pipelines.feedback.prepare import prepare
from data_pipelines.prepare.consolidate import RawAnnotation
from rahf.cli import main as cli
from tests.data_pipelines.feedback.test_feedback_refused import REFUSED, traps  # noqa: F401 - a fixture
from tests.helpers.feedback_maker import GOOD, picture, write
from tests.helpers.richhf18k_maker import refused


def test_the_schema_is_one_and_knows_every_field():
    jsonschema.Draft202012Validator.check_schema(check.validator().schema)
    assert set(check.validator().schema["properties"]) == set(FIELDS)
    assert set(check.validator().schema["$defs"]["annotator"]["properties"]) == set(RawAnnotation._fields)


def test_the_lines_with_a_fault_are_those_that_are_refused(traps):  # noqa: F811
    lines = [{"image": "ok.png", **GOOD}, {"image": "inside.png", **GOOD}]
    for number, (_, line, _) in enumerate(REFUSED):
        unique = isinstance(line, dict) and str(line.get("uid", "")).startswith("bad")
        lines.append({**line, "uid": f"{line['uid']} {number}"} if unique else line)
    lines.append({"image": "ok.png", **GOOD})  # a second line of the first picture
    arguments = write(traps, lines)
    prepare(*arguments, progress=False, dev=0, test=0)
    by_prepare = {one["line"] for one in refused(traps / "out")}
    checked = check.check(*arguments[:2])
    assert {fault.line for fault in checked.faults if fault.refused} == by_prepare == set(range(3, len(lines) + 1))
    assert (checked.lines, checked.refused) == (len(lines), len(lines) - 2)


# fmt: off
FAULTS = [
    ({"annotators": [{"scores": {"overall": 6, "alignment": 0}, "word_labels": [1]},
                     {"points_implausible": [[1, "a"]]}]},
     {"annotators[0].scores.overall", "annotators[0].scores.alignment", "annotators[0].word_labels",
      "annotators[1].points_implausible[0][1]"}),
    ({"annotators": [{"points_misaligned": [[1, 2], [3]]}], "split": "val", "width": 0},
     {"annotators[0].points_misaligned[1]", "split", "width"}),
    ({"scores": {"overall": 1.5}, "word_labels": [1, 2, 0, 1]}, {"scores.overall", "word_labels", "word_labels[1]"}),
    ({"prompt": " "}, {"prompt"}), ({"prompt": None}, {"prompt"}), ({"image": None}, {""}),
    ({"image": 5}, {"", "image"}),
    ({"implausibility": "gone.png", "image": "gone.png"}, {"image"}), ({"misalignment": "gone.png"}, {"misalignment"}),
    ({"width": 10, "height": 10}, {"width"}), ({"scores": None}, {""}),
    ({"scores": {"overall": 0.5}, "annotators": [{"scores": {"overall": 3}}]}, {"scores.overall"}),
]
# fmt: on


def test_all_faults_of_a_line_are_named(tmp_path):
    picture(tmp_path / "pictures" / "a.png")
    lines = [{"image": "a.png", "uid": str(number), **GOOD, **fields} for number, (fields, _) in enumerate(FAULTS)]
    del lines[5]["uid"], lines[6]["uid"]
    checked = check.check(*write(tmp_path, lines)[:2])
    by_line = {number: {f.field for f in checked.faults if f.line == number} for number in range(1, len(lines) + 1)}
    assert by_line == {number: fields for number, (_, fields) in enumerate(FAULTS, 1)}
    assert all(fault.message.isprintable() and len(fault.message) < 300 for fault in checked.faults)


def test_the_command_prints_faults_and_makes_nothing(tmp_path, capsys):
    picture(tmp_path / "pictures" / "a.png")
    lines = [
        {"image": "a.png", **GOOD, "promt": 1, "scores": None, "annotators": [{"points_implausible": [[99, 5]]}]},
        {"image": "a.png", "uid": "b", **GOOD, "scores": {"overall": 9}},
    ]
    annotations, pictures, out = write(tmp_path, lines)
    arguments = ["prepare", "feedback", "--annotations", str(annotations), "--images", str(pictures)]
    assert cli.main([*arguments, "--check"]) == 3
    printed = capsys.readouterr().out
    assert "line 1: warning: promt: this field is not known" in printed
    assert "line 1: warning: annotators[0].points_implausible[0]: 99, 5 lies outside" in printed
    assert "line 2: scores.overall: expected at most 1, found 9" in printed
    assert "1 of 2 lines can be used, 3 remarks" in printed
    assert cli.main(arguments) == 1 and "--out DIR" in capsys.readouterr().err
    annotations.write_text(json.dumps({"image": "a.png", **GOOD}))
    assert cli.main([*arguments, "--check"]) == 0 and not out.exists()


@pytest.mark.parametrize("line", [b"[1]", b"7", b"{", b"\xff", b"null"])
def test_a_line_that_is_no_object(tmp_path, line):
    picture(tmp_path / "pictures" / "a.png")
    (fault,) = check.check(*write(tmp_path, [line])[:2]).faults
    assert fault.field == "" and fault.line == 1
