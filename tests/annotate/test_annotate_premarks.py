"""Marks of a critic: shown after a person's own answer, recorded beside it and never as it; order by uncertainty."""

import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")

import sqlalchemy as sa

from data_pipelines.feedback.check import check
from data_pipelines.feedback.prepare import prepare
from rahf.annotate import assignments, coco, critic_marks, exporting, label_studio, premarks, saving, tables, views
from rahf.annotate.answers import BadAnswer
from rahf.annotate.database import open_database
from rahf.annotate.saving import NotTheirs
from rahf.core.errors import AnnotateError, ImageError
from rahf.critic.feedback import Feedback
from tests.helpers.annotate_maker import answer, body, person, project
from tests.helpers.feedback_maker import HEIGHT, WIDTH, records


class FakeCritic:
    """Marks one region of each picture, surer from picture to picture; cannot use pictures in `broken`."""

    name, model_id = "fake", "fake-1"

    def __init__(self, broken=()):
        self.broken, self.seen = broken, []
        self.network = type("Network", (), {"forward": lambda: None})

    def iterate(self, images, prompts, on_error):
        for at, prompt in enumerate(prompts):
            number = int(prompt.rsplit(" ", 1)[1])
            if number in self.broken:
                on_error(at, ImageError("cannot be used"))
                continue
            self.seen.append(number)
            maps = np.zeros((8, 8, 2), np.float32)
            maps[2:4, 4:6, 0] = 0.6 + 0.1 * number
            maps[3, 5, 0] += 0.05
            yield at, self.feedback(maps, (HEIGHT, WIDTH + number), prompt)

    def feedback(self, maps, size, prompt="a b"):
        words = prompt.split()
        return Feedback(
            "x", prompt, {}, words, np.full(len(words), 0.0, np.float32), np.ones(len(words), int), "probability",
            maps, np.zeros((2, 2, 3), np.uint8), size, self.model_id,
        )  # fmt: skip


@pytest.fixture
def small(tmp_path):
    database = project(tmp_path, 4, people_per_picture=2, ahead=1)
    yield database
    database.close()


@pytest.fixture
def marked(small):
    """A project whose pictures a critic has seen, and a person."""
    critic_marks.make(small, FakeCritic())
    return small, person(small)


def done(database, who, revision=1, **changes):
    """A finished answer of a person to the next picture; its number."""
    (held,) = assignments.hold(database, who.id)
    saving.save(database, who.id, body(held, revision, **changes))
    return held


def test_marks_are_the_peaks_of_regions_and_uncertainty_a_variance():
    maps = np.zeros((4, 8, 2), np.float32)
    maps[0, 0, 0], maps[2:, 6:, 0], maps[3, 7, 0] = 0.5, 0.6, 0.9
    maps[:, :, 1] = np.nan
    feedback = FakeCritic().feedback(maps, (40, 160))
    assert critic_marks.marks_of(feedback, 0.5) == {
        "points_implausible": [[150.0, 35.0, 0.9], [10.0, 5.0, 0.5]],
        "points_misaligned": [],
    }
    assert critic_marks.marks_of(feedback, 0.7)["points_implausible"] == [[150.0, 35.0, 0.9]]
    expected = (1 + 3 * 4 * 0.6 * 0.4 + 4 * 0.9 * 0.1) / 32 / 2  # the words are sure, one map is not predicted
    assert critic_marks.uncertainty(feedback) == pytest.approx(expected)


def test_marks_are_made_once_for_each_picture_of_a_model(small):
    critic = FakeCritic(broken=(2,))
    made = critic_marks.make(small, critic)
    assert (made.new, made.already, len(made.refused)) == (3, 0, 1) and "cannot be used" in made.refused[0]
    again = FakeCritic()
    made = critic_marks.make(small, again)
    assert (made.new, made.already, again.seen) == (1, 3, [2])
    other = FakeCritic()
    other.model_id = "fake-2"
    assert critic_marks.make(small, other).new == 4
    (pathlib.Path(small.folder) / "0.png").write_bytes(b"another file")
    other.model_id = "fake-3"
    made = critic_marks.make(small, other)
    assert made.new == 3 and "0.png: the file has changed" in made.refused[0]
    with pytest.raises(AnnotateError, match="--premark-threshold is 0"):
        critic_marks.make(small, critic, threshold=0)
    critic.network.forward = None
    with pytest.raises(AnnotateError, match="scores only"):
        critic_marks.make(small, critic)


def test_nothing_is_told_before_the_persons_own_answer(marked):
    database, who = marked
    (held,) = assignments.hold(database, who.id)
    (item,) = views.items(database, who, [held])
    assert "premarks" not in item and "fake" not in json.dumps(item)
    with pytest.raises(BadAnswer, match="finish your own"):
        premarks.show(database, who.id, held)
    saving.save(database, who.id, body(held, 1, complete=False, answer={}))
    with pytest.raises(BadAnswer, match="finish your own"):
        premarks.show(database, who.id, held)
    with pytest.raises(BadAnswer, match="no marks of a critic were shown"):
        saving.save(database, who.id, body(held, 2, accepted={"points_implausible": [0]}))
    saving.save(database, who.id, body(held, 2))
    shown = premarks.show(database, who.id, held)
    assert shown.model == "fake-1" and len(shown.marks["points_implausible"]) == 1 and shown.accepted == {}
    assert premarks.show(database, who.id, held) == shown
    other = person(database, "B")
    for number in (held, 99, -1):
        with pytest.raises(NotTheirs):
            premarks.show(database, other.id, number)


def test_what_follows_the_marks_is_kept_apart(marked):
    """The own answer stays, whatever the person accepts, changes, skips or finishes again."""
    database, who = marked
    held = done(database, who, answer=answer(implausible=[(5, 5)]))
    premarks.show(database, who.id, held)
    changed = answer(implausible=[(5, 5), (40, 20)], score=1)
    receipt = saving.save(database, who.id, body(held, 2, answer=changed, accepted={"points_implausible": [0]}))
    assert receipt.current
    (own,) = views.items(database, who, [held])
    assert own["answer"] == changed and own["premarks"]["accepted"]["points_implausible"] == [0]

    def exported():
        (one,) = exporting.collect(database)
        return one.answers[who.pseudonym], one.shown[who.pseudonym]

    answered, shown = exported()
    assert answered == answer(implausible=[(5, 5)]) and shown.answer == changed
    assert shown.described("r")["points_implausible"][0]["accepted"]
    # A draft, and a save that says nothing of the marks, leave what was agreed.
    saving.save(database, who.id, body(held, 3, complete=False, answer=answer(implausible=[(5, 5)])))
    answered, shown = exported()
    assert answered == answer(implausible=[(5, 5)]) and shown.answer is None
    assert shown.accepted["points_implausible"] == [0]
    saving.save(database, who.id, body(held, 2, answer=changed, accepted={}))  # older than the newest
    assert exported()[1].accepted["points_implausible"] == [0]
    saving.save(database, who.id, body(held, 4, skip_reason="cannot judge", answer=changed))
    assert list(exporting.collect(database)) == []
    saving.save(database, who.id, body(held, 5, answer=changed, accepted={"points_implausible": []}))
    answered, shown = exported()
    assert answered == answer(implausible=[(5, 5)]) and shown.answer == changed and not any(shown.accepted.values())
    for wrong in ([1], [0, 0], [-1], [True], "0"):
        with pytest.raises(BadAnswer, match="accepted.points_implausible"):
            saving.save(database, who.id, body(held, 6, accepted={"points_implausible": wrong}))
    for wrong in ([0], {"scores": [0]}):
        with pytest.raises(BadAnswer, match="accepted: expected an object"):
            saving.save(database, who.id, body(held, 6, accepted=wrong))


def test_a_picture_without_marks_shows_nothing_and_stays_as_it_is(small):
    who = person(small)
    held = done(small, who)
    assert not premarks.are_there(small) and premarks.show(small, who.id, held) is None
    saving.save(small, who.id, body(held, 2, answer=answer(score=1)))
    (one,) = exporting.collect(small)
    assert one.answers[who.pseudonym]["scores"]["overall"] == 1 and "premarks" not in exporting.line(one)


def test_exports_name_the_marks_as_the_critics(marked, tmp_path):
    database, who = marked
    other = person(database, "B")
    held = done(database, who, answer=answer(wrong=[1]))
    premarks.show(database, who.id, held)
    changed = answer(implausible=[(10, 10), (20, 20)])
    saving.save(database, who.id, body(held, 2, answer=changed, accepted={"points_implausible": [0]}))
    while done(database, other) != held:
        pass
    premarks.show(database, other.id, held)
    own = answer()["points_implausible"]

    exporting.write_feedback(exporting.collect(database), tmp_path / "f.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if "premarks" in line)
    assert [one["points_implausible"] for one in line["annotators"]] == [own, own]
    noted = {one["rater"]: one for one in line["premarks"]}
    assert set(noted) == set(line["raters"]) and {one["model"] for one in noted.values()} == {"fake-1"}
    assert noted[who.pseudonym]["points_implausible"][0]["accepted"] and noted[who.pseudonym]["answer"] == changed
    assert not noted[other.pseudonym]["points_implausible"][0]["accepted"] and "answer" not in noted[other.pseudonym]
    assert check(tmp_path / "f.jsonl", database.folder).faults == []
    summary = prepare(tmp_path / "f.jsonl", database.folder, tmp_path / "out", dev=0, test=0, progress=False)
    assert summary.refused == 0 and summary.unread == {}
    maps = [len(record.annotator_implausibility) for record in records(tmp_path / "out").values()]
    assert max(maps) == 2  # of people, not of the critic

    label_studio.write(exporting.collect(database), tmp_path / "tasks.json")
    (task,) = (task for task in json.loads((tmp_path / "tasks.json").read_text()) if "predictions" in task)
    assert 'name="premarks"' in (tmp_path / "tasks.xml").read_text()
    (prediction,) = task["predictions"]
    (result,) = prediction["result"]
    point = noted[who.pseudonym]["points_implausible"][0]["point"]
    assert prediction["model_version"] == "fake-1" and result["from_name"] == "premarks"
    assert result["value"]["x"] == pytest.approx(100 * point[0] / line["width"])
    for annotation in task["annotations"]:
        assert [one["id"] for one in annotation["result"] if one["type"] == "keypointlabels"] == ["p1"]
    converted = label_studio.read(tmp_path / "tasks.json", database.folder, tmp_path / "back.jsonl")
    assert converted.refused == []
    back = [json.loads(text) for text in (tmp_path / "back.jsonl").read_text().splitlines()]
    (again,) = (one for one in back if "premarks" in one)
    assert again["premarks"] == line["premarks"] and again["annotators"] == line["annotators"]

    coco.write(exporting.collect(database), tmp_path / "marks.json")
    tree = json.loads((tmp_path / "marks.json").read_text())
    assert [one["keypoints"][:2] for one in tree["annotations"]] == own * len(tree["annotations"])
    (mark,) = tree["premarks"]
    assert mark["keypoints"][:2] == point and mark["accepted_by"] == [who.pseudonym] and mark["model"] == "fake-1"
    assert sorted(mark["shown_to"]) == sorted([who.pseudonym, other.pseudonym])


def test_a_mark_taken_over_from_a_prediction_is_nobodys_own(small, tmp_path):
    done(small, person(small), answer=answer(implausible=[(5, 5), (20, 20)]))
    label_studio.write(exporting.collect(small), tmp_path / "tasks.json")
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    task["annotations"][0]["result"][0]["origin"] = "prediction"
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    converted = label_studio.read(tmp_path / "tasks.json", small.folder, tmp_path / "back.jsonl")
    assert converted.unread == {"keypointlabels taken over from a prediction": 1}
    line = json.loads((tmp_path / "back.jsonl").read_text())
    assert line["annotators"][0]["points_implausible"] == [[20.0, 20.0]]


def test_the_pictures_that_a_critic_is_least_sure_of_come_first(small):
    with pytest.raises(AnnotateError, match="give one with --model"):
        premarks.set_order(small, "uncertainty")
    critic_marks.make(small, FakeCritic(broken=(0,)))
    premarks.set_order(small, "uncertainty")
    with small.read() as connection:
        uncertain = sa.select(tables.premarks.c.picture_id).order_by(tables.premarks.c.uncertainty.desc())
        expected = list(connection.scalars(uncertain))
    assert expected == [2, 3, 4]  # 0.6 + 0.1 n: the higher, the surer
    first, second = person(small), person(small, "B")
    assert [done(small, first) for _ in range(2)] == [2, 3]
    # Each picture is brought to its end before the next one begins; the one without marks comes last.
    assert [done(small, second) for _ in range(4)] == [2, 3, 4, 1]
    assert [done(small, first) for _ in range(2)] == [4, 1]
    premarks.set_order(small, "random")
    assert small.project.order == "random"
    with pytest.raises(AnnotateError, match="--order is 'best'"):
        premarks.set_order(small, "best")


def test_a_database_of_before_gets_the_new_tables(tmp_path):
    database = project(tmp_path, 1)
    who = person(database)
    with database.write() as connection:
        for table in tables.ADDED_LATER:
            table.drop(connection)
        connection.execute(sa.text("DROP INDEX pictures_order"))
    database.close()
    again = open_database(tmp_path / "feedback.sqlite")
    done(again, who)
    assert again.secret == database.secret and not premarks.are_there(again)
    with again.read() as connection:
        assert "pictures_order" in {one["name"] for one in sa.inspect(connection).get_indexes("pictures")}
    again.close()
