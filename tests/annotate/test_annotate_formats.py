"""Label Studio both ways, COCO, and answers of another project."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")

from PIL import Image

from data_pipelines.feedback import check
from data_pipelines.prepare.consolidate import draw_discs
from rahf.annotate import agreement, assignments, coco, exporting, import_answers, label_studio, quality, saving
from rahf.cli import main as cli
from rahf.core.errors import AnnotateError
from rahf.images.orientation import upright
from tests.helpers.annotate_maker import PROMPT, answer, body, person, project
from tests.helpers.feedback_maker import HEIGHT, WIDTH, picture


@pytest.fixture
def answered(tmp_path):
    """A project with two pictures that two people have answered."""
    database = project(tmp_path, 2, people_per_picture=2)
    given = [answer(score=2, misaligned=[(30.5, 20.25)], wrong=[1, 3]), answer(score=5, implausible=())]
    for own in given:
        who = person(database)
        for held in assignments.hold(database, who.id):
            saving.save(database, who.id, body(held, answer=own))
    yield database
    database.close()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_label_studio_and_back_is_the_same_file(answered, tmp_path, capsys):
    place = str(tmp_path / "feedback.sqlite")
    for name, more in (
        ("feedback.jsonl", []),
        ("ls.json", ["--format", "label-studio", "--prefix", "/data/local-files/?d=p/"]),
    ):
        assert cli.main(["annotate", "export", "--db", place, "--out", str(tmp_path / name), *more]) == 0
    tasks = json.loads((tmp_path / "ls.json").read_text())
    result = [one for annotation in tasks[0]["annotations"] for one in annotation["result"]]
    mark = next(one for one in result if one["value"].get("keypointlabels") == ["misaligned"])
    assert (mark["original_width"], mark["original_height"]) == (WIDTH, HEIGHT)
    assert (mark["value"]["x"], mark["value"]["y"]) == (pytest.approx(100 * 30.5 / WIDTH), pytest.approx(50.625))
    spans = [one["value"] for one in result if one["type"] == "labels"]
    assert [tasks[0]["data"]["prompt"][span["start"] : span["end"]] for span in spans] == ["red", "sitting"]
    config = ElementTree.fromstring((tmp_path / "ls.xml").read_text())
    assert {one.get("name") for one in config.iter("Rating")} == set(answer()["scores"])
    arguments = [
        "--tasks",
        str(tmp_path / "ls.json"),
        "--images",
        answered.folder,
        "--out",
        str(tmp_path / "back.jsonl"),
    ]
    assert cli.main(["annotate", "from-label-studio", *arguments]) == 0
    for back, line in zip(lines_of(tmp_path / "back.jsonl"), lines_of(tmp_path / "feedback.jsonl"), strict=True):
        assert back == {name: value for name, value in line.items() if name not in ("raters", "adjudicated")}
    assert check.check(tmp_path / "back.jsonl", answered.folder).faults == []
    assert "4 answers of 2 pictures" in capsys.readouterr().out


def keypoint(x, y, **fields):
    value = {"x": x, "y": y, "width": 1, "keypointlabels": ["implausible"]}
    return {"type": "keypointlabels", "from_name": "marks", "value": value, **fields}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_marks_on_pictures_that_exif_turns(tmp_path, orientation):
    """A bright spot of the stored pixels, named in percent of the shown and of the stored picture."""
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[4:8, 20:24] = 255  # its middle is at (22, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    shown = np.asarray(upright(Image.fromarray(stored), orientation))[..., 0] > 128
    rows, columns = np.nonzero(shown)
    height, width = shown.shape
    x, y = columns.mean() + 0.5, rows.mean() + 0.5
    results = [keypoint(100 * x / width, 100 * y / height, original_width=width, original_height=height)]
    if orientation >= 5:  # else nothing tells whether the size is that of the stored or of the shown pixels
        results.append(keypoint(100 * 22 / 30, 100 * 6 / 20, original_width=30, original_height=20))
    task = {"data": {"image": "http://127.0.0.1:9/x/a.jpg", "prompt": "a cat"}, "annotations": [{"result": results}]}
    (tmp_path / "ls.json").write_text(json.dumps([task]))
    label_studio.read(tmp_path / "ls.json", tmp_path, tmp_path / "out.jsonl")
    (line,) = lines_of(tmp_path / "out.jsonl")
    assert (line["width"], line["height"]) == (width, height)
    assert line["annotators"][0]["points_implausible"] == [
        [pytest.approx(x, abs=0.01), pytest.approx(y, abs=0.01)]
    ] * len(results)


@pytest.mark.parametrize("rotation, shown", [(0, (25, 10)), (90, (90, 25)), (180, (75, 90)), (270, (10, 75))])
def test_marks_on_a_picture_that_the_person_had_turned(tmp_path, rotation, shown):
    """(25, 10) percent of the picture, as it stands after a turn clockwise by `rotation` degrees."""
    picture(tmp_path / "a.png")
    results = [keypoint(*shown, image_rotation=rotation)]
    (tmp_path / "ls.json").write_text(
        json.dumps([{"data": {"image": "a.png", "prompt": "a cat"}, "annotations": [{"result": results}]}])
    )
    label_studio.read(tmp_path / "ls.json", tmp_path, tmp_path / "out.jsonl")
    (line,) = lines_of(tmp_path / "out.jsonl")
    assert line["annotators"][0]["points_implausible"] == [[WIDTH * 0.25, HEIGHT * 0.1]]


def test_tasks_that_others_made(tmp_path, capsys):
    for name in ("a.png", "deep/a.png", "b.png", "two/c.png", "one/c.png"):
        picture(tmp_path / "pictures" / name)
    good = {"result": [keypoint(50, 50)]}
    rating = {"type": "rating", "from_name": "Overall", "value": {"rating": 4}}
    box = {
        "type": "rectanglelabels",
        "from_name": "x",
        "value": {"x": 10, "y": 20, "width": 20, "height": 10, "rectanglelabels": ["Misaligned"]},
    }
    usable = [
        {
            "data": {"image": "/data/upload/1/0a1b2c3d-b.png", "prompt": PROMPT},
            "annotations": [{"result": [rating, box]}],
        },
        {
            "data": {"image": "s3://bucket/deep/a.png", "caption": PROMPT},
            "annotations": [good, {"was_cancelled": True}],
        },
    ]
    bad = [
        {"data": {"image": "http://127.0.0.1:9/gone.png", "prompt": "x"}, "annotations": [good]},
        {"data": {"image": "x/c.png", "prompt": "x"}, "annotations": [good]},
        {"data": {"image": "../../secret.png", "prompt": "x"}, "annotations": [good]},
        {"data": {"image": "a.png"}, "annotations": [good]}, {"data": {"prompt": "x"}, "annotations": [good]}, {},
        {"data": {"image": "a.png", "prompt": "x"}, "annotations": [{"result": [keypoint(101, 5)]}]},
        {"data": {"image": "a.png", "prompt": "x"}, "annotations": [{"result": [keypoint(1, 5, image_rotation=45)]}]},
        {"data": {"image": "a.png", "prompt": "x"}, "annotations": [{"result": [{**rating, "value": {"rating": 9}}]}]},
        {"data": {"image": "a.png", "prompt": "x"}, "annotations": []}, {"data": {"image": "http://[", "prompt": "x"}},
    ]  # fmt: skip
    odd = {"result": [{"type": "brushlabels", "from_name": "<b>", "value": {}}, {"type": "rating"}, 5, rating]}
    usable.append({"data": {"image": "b.png", "prompt": "a cat", "uid": "u"}, "annotations": [odd]})
    (tmp_path / "ls.json").write_text(json.dumps([*usable, *bad]))
    arguments = [
        "--tasks",
        str(tmp_path / "ls.json"),
        "--images",
        str(tmp_path / "pictures"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main(["annotate", "from-label-studio", *arguments]) == 3
    printed = capsys.readouterr()
    assert printed.err.count("refused: task") == len(bad) and "not read: 1 results, brushlabels of <b>" in printed.err
    first, second, third = lines_of(tmp_path / "o")
    assert first["annotators"] == [
        {"points_implausible": [], "points_misaligned": [[12, 10]], "scores": {"overall": 4}}
    ]
    assert second["image"] == "deep/a.png" and len(second["annotators"]) == 1 and third["uid"] == "u"
    for text in ("{}", "[1]", "no", "[" * 100_000):
        (tmp_path / "ls.json").write_text(text)
        with pytest.raises(AnnotateError, match="ls.json"):
            label_studio.read(tmp_path / "ls.json", tmp_path / "pictures", tmp_path / "o")


def test_coco_of_the_marks(answered, tmp_path):
    assert coco.write(exporting.collect(answered), tmp_path / "coco.json") == (2, 4)
    tree = json.loads((tmp_path / "coco.json").read_text())
    assert [one["name"] for one in tree["categories"]] == ["implausibility", "misalignment"]
    for one in tree["annotations"]:
        shown = tree["images"][one["image_id"] - 1]
        disc = draw_discs([one["keypoints"][:2]], shown["width"], shown["height"]).sum()
        assert one["area"] == pytest.approx(disc, rel=0.3) and one["bbox"][2:] == [4, 4]
        assert one["rater"].startswith("rater-")
    place = str(tmp_path / "feedback.sqlite")
    more = ["--format", "coco", "--marks", "implausibility", "--out", str(tmp_path / "one.json")]
    assert cli.main(["annotate", "export", "--db", place, *more]) == 0
    out = ["--images", answered.folder, "--out", str(tmp_path / "regions"), "--dev", "0", "--test", "0"]
    assert cli.main(["prepare", "regions", "--annotations", str(tmp_path / "one.json"), *out]) == 0
    with pytest.raises(AnnotateError, match="expected some of"):
        coco.write(iter(()), tmp_path / "x.json", ("words",))


def test_answers_of_another_project_are_added_once(answered, tmp_path, capsys):
    exporting.write_feedback(exporting.collect(answered), tmp_path / "feedback.jsonl")
    other = project(tmp_path, 2, place=tmp_path / "other.sqlite")
    more = [
        {"uid": "gone", "prompt": "x", "annotators": [answer()]},
        {"uid": "0.png", "prompt": "x", "annotators": [{}]},
    ]
    with open(tmp_path / "feedback.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in more)
    arguments = [
        "annotate",
        "import",
        "--db",
        str(tmp_path / "other.sqlite"),
        "--annotations",
        str(tmp_path / "feedback.jsonl"),
    ]
    for counts in ("4 new, 0 already", "0 new, 4 already"):
        assert cli.main(arguments) == 3
        assert f"answers: {counts} there, 2 refused" in capsys.readouterr().out
    mine, theirs = (agreement.measure(list(agreement.judgements(one))) for one in (answered, other))
    assert {**mine, "people": None} == {**theirs, "people": None}
    assert quality.overview(other)["counts"]["work"]["answers"] == 4
    who = person(other)
    assert len(assignments.hold(other, who.id)) == 2  # the third person of each
    half = {"uid": "1.png", "prompt": "x", "width": 2 * (WIDTH + 1), "height": 2 * HEIGHT}
    half["annotators"] = [answer(implausible=[(20, 10)])]
    (tmp_path / "half.jsonl").write_text(json.dumps(half))
    assert import_answers.import_answers(other, tmp_path / "half.jsonl").new == 1
    assert [10, 5] in [p for one in agreement.judgements(other) for p in one.answer["points_implausible"]]
    other.close()


def test_a_decision_replaces_the_answers(answered, tmp_path):
    judge = person(answered, "J", "administrator")
    quality.adjudicate(answered, judge.id, 1, answer(score=1))
    place = str(tmp_path / "feedback.sqlite")
    for more, count in ([], 2), (["--adjudicated"], 1):
        assert cli.main(["annotate", "export", "--db", place, "--out", str(tmp_path / "f"), *more]) == 0
        first, second = lines_of(tmp_path / "f")
        assert (len(first["annotators"]), len(second["annotators"])) == (count, 2)
        assert first["adjudicated"] == bool(more) and check.check(tmp_path / "f", answered.folder).faults == []


def test_commands_on_people_gold_and_agreement(answered, tmp_path, capsys):
    place = ["--db", str(tmp_path / "feedback.sqlite")]
    assert cli.main(["annotate", "people", *place, "--add", "Ann", "--study", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Ann: SERVER/#token=" in printed and "&PROLIFIC_PID={{%PROLIFIC_PID%}}" in printed
    assert cli.main(["annotate", "people", *place]) == 0
    listed = capsys.readouterr().out
    assert listed.count("rater-") == 3 and "token" not in listed
    (tmp_path / "gold.jsonl").write_text(
        json.dumps({"image": "1.png", "uid": "g", "prompt": PROMPT, "annotators": [answer(4)]})
    )
    assert cli.main(["annotate", "gold", *place, "--answers", str(tmp_path / "gold.jsonl")]) == 0
    assert "1 new" in capsys.readouterr().out
    assert cli.main(["annotate", "agreement", *place, "--json", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    assert "4 answers to 2 pictures, 2 of them by two or more" in printed and "words: Fleiss' kappa" in printed
    assert json.loads((tmp_path / "a.json").read_text())["scores"]["overall"]["max_difference"] == [0, 0, 0, 2, 0]
    assert cli.main(["annotate", "--db", str(tmp_path / "absent.sqlite")]) == 1
    assert cli.main(["annotate"]) == 1 and cli.main(["annotate", *place, "--tls-key", "k"]) == 1
