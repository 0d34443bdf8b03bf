"""Storage and rules without HTTP: import, who sees what, saves, people, and a file that `prepare feedback` reads."""

import collections
import json
import sqlite3
import stat

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")

import sqlalchemy as sa

from data_pipelines.feedback.prepare import prepare
from rahf.annotate import agreement, answers, assignments, exporting, gold, importing, people, saving, tables
from rahf.annotate.database import open_database
from rahf.cli import main as cli
from rahf.core.errors import AnnotateError
from rahf.metrics import agreement as measures
from tests.helpers.annotate_maker import PROMPT, answer, body, person, project, write_project
from tests.helpers.feedback_maker import HEIGHT, WIDTH, picture, records


@pytest.fixture
def small(tmp_path):
    database = project(tmp_path, 4, people_per_picture=2, ahead=1)
    yield database
    database.close()


def rows(database, table):
    with database.read() as connection:
        return connection.execute(sa.select(table)).all()


def work(database, who, count=100, **changes):
    """Answers up to `count` pictures; their numbers."""
    seen = []
    while len(seen) < count and (held := assignments.hold(database, who.id)):
        saving.save(database, who.id, body(held[0], **changes))
        seen.append(held[0])
    return seen


def test_import_stores_upright_sizes_and_refuses_what_cannot_be_shown(tmp_path):
    pictures, prompts = write_project(tmp_path, 2)
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(pictures / "turned.jpg", exif=exif)
    (pictures / "page.png").write_text("<script>alert(1)</script>")
    (pictures / "drawing.svg").write_text("<svg/>")
    (pictures / "link.png").symlink_to("/etc/passwd")
    picture(tmp_path / "secret.png")
    more = [
        "turned.jpg",
        "page.png",
        "drawing.svg",
        "link.png",
        "../secret.png",
        "http://127.0.0.1:9/a.png",
        "gone.png",
    ]
    with open(prompts, "a") as file:
        file.writelines(json.dumps({"image": name, "prompt": "a cat"}) + "\n" for name in more)
        file.write(json.dumps({"image": "0.png", "uid": "again", "prompt": " ,. "}) + "\n" + "{\n")
    database = open_database(tmp_path / "a.sqlite", create=True)
    imported = importing.import_pictures(database, pictures, prompts)
    assert imported.new == 3 and len(imported.refused) == len(more) - 1 + 2
    assert {row.name: (row.width, row.height) for row in rows(database, tables.pictures)} == {
        "0.png": (WIDTH, HEIGHT), "1.png": (WIDTH + 1, HEIGHT), "turned.jpg": (20, 30)
    }  # fmt: skip
    again = importing.import_pictures(database, pictures, prompts)
    assert (again.new, again.already) == (0, 3)
    with pytest.raises(AnnotateError, match="give that folder"):
        importing.import_pictures(database, tmp_path, prompts)
    database.close()


def test_prompts_from_captions_and_text_files(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("one star")
    (tmp_path / "captions.csv").write_text("uid,caption\nb,two stars\n")
    database = open_database(tmp_path / "a.sqlite", create=True)
    imported = importing.import_pictures(database, tmp_path)
    assert {row.uid: row.prompt for row in rows(database, tables.pictures)} == {
        "a.png": "one star",
        "b.png": "two stars",
    }
    assert imported.refused == ["c.png: no prompt"]
    database.close()


def test_every_picture_goes_to_as_many_different_people_as_wanted_in_balance(small):
    crowd = [person(small, name) for name in "ABC"]
    seen = collections.defaultdict(list)
    for turn in range(12):
        who = crowd[turn % 3]
        for number in work(small, who, 1):
            seen[number].append(who.id)
        counts = [row.taken for row in rows(small, tables.pictures)]
        assert max(counts) - min(counts) <= 1
    assert all(len(set(who)) == len(who) == 2 for who in seen.values()) and len(seen) == 4
    assert [assignments.hold(small, who.id) for who in crowd] == [[], [], []]


def test_a_lease_that_is_over_goes_to_somebody_else_and_late_work_is_kept(small):
    first, second, third = (person(small, name) for name in "ABC")
    (held,) = assignments.hold(small, first.id)
    assert assignments.hold(small, first.id) == [held]  # the same one until it is answered
    small.clock.now += small.project.lease_seconds - 1
    assignments.hold(small, first.id)  # renews it
    small.clock.now += small.project.lease_seconds - 1
    assert sum(row.taken for row in rows(small, tables.pictures)) == 1
    small.clock.now += 2
    others = work(small, second) + work(small, third)
    assert others.count(held) == 2
    receipt = saving.save(small, first.id, body(held))
    assert receipt.current
    row = next(row for row in rows(small, tables.pictures) if row.id == held)
    assert (row.taken, row.answered) == (3, 3)
    assert held not in work(small, first)


def test_a_save_is_acknowledged_once_and_the_newest_revision_counts(small):
    who, other = person(small), person(small, "B")
    (held,) = assignments.hold(small, who.id)
    third = body(held, 3, answer=answer(score=5))
    assert saving.save(small, who.id, third) == (third["save_id"], 3, True, False, False)
    assert saving.save(small, who.id, third) == (third["save_id"], 3, True, True, False)
    late = saving.save(small, who.id, body(held, 2, answer=answer(score=1)))
    assert not late.current
    (stored,) = rows(small, tables.answers)
    assert json.loads(stored.answer)["scores"]["overall"] == 5 and stored.revision == 3
    assert len(rows(small, tables.saves)) == 2  # the late one is kept, too
    assert saving.save(small, who.id, body(held, 3, answer=answer(score=4))).current  # of another window
    with pytest.raises(saving.NotTheirs, match="no such save"):
        saving.save(small, other.id, third)
    for number in {row.id for row in rows(small, tables.pictures)} - {held} | {99}:
        with pytest.raises(saving.NotTheirs, match="no such picture"):
            saving.save(small, who.id, body(number))


def test_a_draft_does_not_undo_a_finished_answer(small):
    who = person(small)
    (held,) = assignments.hold(small, who.id)
    saving.save(small, who.id, body(held, 1, complete=False, answer={"scores": {"overall": 2}}))
    assert not rows(small, tables.answers)[0].complete and assignments.hold(small, who.id) == [held]
    saving.save(small, who.id, body(held, 2))
    saving.save(small, who.id, body(held, 3, complete=False, answer=answer(score=4)))
    (stored,) = rows(small, tables.answers)
    assert stored.complete and json.loads(stored.answer)["scores"]["overall"] == 4
    assert not saving.save(small, who.id, body(held, 4, complete=False, answer={})).current
    saving.save(small, who.id, body(held, 5, skip_reason="cannot judge", complete=False, answer={}))
    assert not rows(small, tables.answers)[0].complete
    row = next(row for row in rows(small, tables.pictures) if row.id == held)
    assert (row.taken, row.answered, row.skipped) == (0, 0, 1)


# fmt: off
BAD = [
    ({"save_id": "short"}, "save_id"), ({"save_id": "x" * 70}, "save_id"), ({"save_id": None}, "save_id"),
    ({"revision": 0}, "revision"), ({"revision": True}, "revision"), ({"picture": "1"}, "picture"),
    ({"seconds": -1}, "seconds"), ({"seconds": float("nan")}, "seconds"), ({"complete": 1}, "complete"),
    ({"skip_reason": "I am tired"}, "skip_reason"), ({"skip_reason": "other: \x00"}, "skip_reason"),
    ({"skip_reason": 5}, "skip_reason"), ({"answer": []}, "answer"),
    ({"answer": {**answer(), "x": 1}}, "unknown fields x"),
    ({"answer": {**answer(), "points_implausible": None}}, "points_implausible"),
    ({"answer": answer(implausible=[(-1, 5)])}, r"points_implausible\[0\]"),
    ({"answer": answer(misaligned=[(5, 5), (5, HEIGHT + 1)])}, r"points_misaligned\[1\]"),
    ({"answer": answer(implausible=[(1,)])}, r"expected \[x, y\]"),
    ({"answer": answer(implausible=[("a", 1)])}, "expected"),
    ({"answer": answer(implausible=[(10**400, 1)])}, "expected"),
    ({"answer": answer(implausible=[(1, 1)] * 201)}, "200"),
    ({"answer": answer(score=6)}, "scores.plausibility"), ({"answer": answer(score=2.5)}, "scores.plausibility"),
    ({"answer": answer(score=True)}, "scores"), ({"answer": answer(words=4)}, "5 labels"),
    ({"answer": {**answer(), "word_labels": [2] * 5}}, "aligned"), ({"answer": {}}, "points_implausible"),
    ({"answer": {**answer(), "scores": {"beauty": 1}}}, "scores"),
]
# fmt: on


def test_answers_that_cannot_be_stored_name_the_field_and_leave_nothing(small):
    who = person(small)
    (held,) = assignments.hold(small, who.id)
    for changes, message in BAD:
        with pytest.raises(answers.BadAnswer, match=message):
            saving.save(small, who.id, {**body(held), **changes})
    assert rows(small, tables.answers) == rows(small, tables.saves) == []


def test_pictures_that_everybody_skips_are_left_to_the_administrator(tmp_path):
    database = project(tmp_path, 1, people_per_picture=2)
    for name in "AB":
        assert work(database, person(database, name), skip_reason="offensive", complete=False, answer={}) == [1]
    assert assignments.hold(database, person(database, "C").id) == []
    database.close()


def test_training_comes_first_and_hidden_gold_in_between(tmp_path):
    database = project(tmp_path, 6, people_per_picture=1, ahead=1, training=1, gold_every=2)
    right = {"annotators": [answer(score=4)], "explanation": "The paw has six toes."}
    for name, purpose in (("t", "training"), ("g", "gold")):
        picture(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": f"{name}.png", "prompt": PROMPT + " 9", **right}))
        assert importing.import_pictures(database, database.folder, tmp_path / f"{name}.jsonl", purpose).new == 1
    with pytest.raises(AnnotateError, match="need their answers"):
        importing.import_pictures(database, database.folder, None, "gold")
    who = person(database)
    purpose = {row.id: row.purpose for row in rows(database, tables.pictures)}
    seen = [purpose[number] for number in work(database, who)]
    assert seen == ["training", "work", "work", "gold", "work", "work", "work", "work"]
    assert exporting.write_feedback(exporting.collect(database), tmp_path / "out.jsonl") == (
        6,
        6,
    )  # neither training nor gold
    database.set_project(most_pictures=3)
    other = person(database, "B")
    database.set_project(people_per_picture=2)
    assert [purpose[number] for number in work(database, other)].count("work") == 3
    database.close()


def test_an_answer_is_compared_with_gold():
    right = answer(score=3, implausible=[(10, 10)], wrong=[1])
    words = PROMPT.split()
    assert gold.compare(answer(4, 4, [(12, 11)], wrong=[1]), {**right, "word_labels": [1, 0, 1, 1]}, words, HEIGHT) == (
        7, 7, [],
    )  # fmt: skip
    wrong = gold.compare(answer(4, 5, [(50, 30)], [(1, 1)]), {**right, "word_labels": [1, 0, 1, 1]}, words, HEIGHT)
    assert wrong.right == 0 and wrong.share == 0 and len(wrong.remarks) == 7
    assert "implausibility: 1 place not marked and 1 mark where nothing was expected" in wrong.remarks


def test_tokens_are_random_stored_as_hashes_and_revocable(small):
    token = people.add(small, "Ann")
    who = people.enter(small, token)
    assert who.label == "Ann" and not who.administrator and len(token) > 40
    assert token.split(".")[1] not in "".join(map(str, rows(small, tables.people)))
    for wrong in ("", ".", token[:-1], token + "x", token.split(".")[0], "nobody." + token.split(".")[1]):
        assert people.enter(small, wrong) is None
    cookie = people.session_value(small, who)
    assert people.of_session(small, cookie) == who
    for forged in ("", "...", cookie[:-1] + ("0" if cookie[-1] != "0" else "1"), "2" + cookie[1:], "é.1.1.x"):
        assert people.of_session(small, forged) is None
    assert people.is_form_token(small, cookie, people.form_token(small, cookie))
    assert not people.is_form_token(small, cookie, people.form_token(small, cookie + "x"))
    new = people.renew(small, who.pseudonym)
    assert people.enter(small, token) is None and people.of_session(small, cookie) is None
    later = people.session_value(small, people.enter(small, new))
    people.deactivate(small, who.pseudonym)
    assert people.enter(small, new) is None and people.of_session(small, later) is None
    with pytest.raises(AnnotateError, match="nobody has"):
        people.renew(small, "rater-0")
    for label, role in (("", "annotator"), ("A", "root")):
        with pytest.raises(AnnotateError):
            people.add(small, label, role)


def test_a_session_ends(small):
    cookie = people.session_value(small, person(small))
    small.clock.now += 15 * 24 * 3600
    assert people.of_session(small, cookie) is None


def test_people_of_a_platform_join_with_the_key_of_a_study(small):
    key = people.add_study(small, 2)
    first = people.join(small, key, "5f3a")
    assert people.join(small, key, "5f3a") == first and first.completion_code
    assert people.join(small, key, "77aa").id != first.id
    assert people.join(small, key, "88bb") is None  # full
    for wrong_key, platform_id in ((key + "x", "5f3a"), ("", "5f3a"), (key, ""), (key, "a" * 101), (key, "<script>")):
        assert people.join(small, wrong_key, platform_id) is None
    people.deactivate(small, first.pseudonym)
    assert people.join(small, key, "5f3a") is None


def test_each_database_has_its_own_secret_and_is_private(tmp_path):
    first, second = (open_database(tmp_path / name, create=True) for name in "ab")
    assert len(first.secret) == 32 and first.secret != second.secret
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    first.close(), second.close()
    again = open_database(tmp_path / "a")
    assert again.secret == first.secret
    again.close()
    assert sqlite3.connect(tmp_path / "a").execute("pragma journal_mode").fetchone() == ("wal",)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(AnnotateError, match="does not exist"):
        open_database(tmp_path / "absent")
    (tmp_path / "text").write_text("no database at all")
    with pytest.raises(AnnotateError, match="not an SQLite database"):
        open_database(tmp_path / "text", create=True)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("create table t (x)")
    other.commit(), other.close()
    with pytest.raises(AnnotateError, match="not a database of"):
        open_database(tmp_path / "other", create=True)
    for place, message in (
        ("mysql://a/b", "expected the path"),
        (tmp_path, "no regular file"),
        (tmp_path / "x/y", "no folder"),
    ):
        with pytest.raises(AnnotateError, match=message):
            open_database(place, create=True)
    database = open_database(tmp_path / "a", create=True)
    with pytest.raises(AnnotateError, match="no pictures yet"):
        assert database.folder
    with pytest.raises(AnnotateError, match="--lease-seconds is 1"):
        database.set_project(lease_seconds=1)
    database.set("version", "99")
    database.close()
    with pytest.raises(AnnotateError, match="another version"):
        open_database(tmp_path / "a")


def test_what_is_exported_can_be_prepared_and_has_pseudonyms_only(small, tmp_path):
    crowd = [person(small, f"Person {name}") for name in "AB"]
    for number, who in enumerate(crowd):
        work(small, who, answer=answer(score=2 + 2 * number, implausible=[(10, 10 + number)], wrong=[1]))
    assert exporting.write_feedback(exporting.collect(small), tmp_path / "feedback.jsonl") == (4, 8)
    text = (tmp_path / "feedback.jsonl").read_text()
    assert "Person" not in text and text.count("rater-") == 8
    summary = prepare(tmp_path / "feedback.jsonl", small.folder, tmp_path / "out", dev=0, test=0, progress=False)
    assert summary.total("joined") == 4 and summary.refused == 0 and summary.unread == {}
    record = records(tmp_path / "out")["0.png"]
    assert record.scores.tolist() == [0.5] * 4 and record.word_labels == (1, 0, 1, 1, 1)
    assert len(record.annotator_implausibility) == 2


def test_a_mistaken_folder_makes_no_database_and_binds_none(tmp_path, capsys):
    pictures, prompts = write_project(tmp_path, 1)
    place = tmp_path / "a.sqlite"
    for mistake in (["--images", str(tmp_path / "absent")], ["--images", str(pictures), "--prompts", "absent.jsonl"]):
        assert cli.main(["annotate", *mistake, "--db", str(place)]) == 1
        assert "absent" in capsys.readouterr().err and not place.exists()
    (tmp_path / "empty").mkdir()
    assert cli.main(["annotate", "--images", str(tmp_path / "empty"), "--db", str(place)]) == 1
    assert "no picture in it" in capsys.readouterr().err
    database = open_database(place)
    assert importing.import_pictures(database, pictures, prompts).new == 1
    database.close()


def test_a_picture_at_work_becomes_gold_unless_somebody_has_seen_it(small, tmp_path):
    seen = work(small, person(small), 1)[0]
    lines = [{"image": f"{n}.png", "prompt": f"{PROMPT} {n}", "annotators": [answer()]} for n in range(4)]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    added = importing.import_pictures(small, small.folder, tmp_path / "gold.jsonl", "gold")
    assert (added.new, added.already, len(added.refused)) == (3, 0, 1)
    assert f"{seen - 1}.png: it is a work picture already" in added.refused[0]
    again = importing.import_pictures(small, small.folder, tmp_path / "gold.jsonl", "gold")
    assert (again.new, again.already, len(again.refused)) == (0, 3, 1)
    stored = {row.id: (row.purpose, row.answer is not None) for row in rows(small, tables.pictures)}
    assert stored == {n: ("work", False) if n == seen else ("gold", True) for n in range(1, 5)}
    # The pictures' own file again: those that are gold by now stay so.
    assert importing.import_pictures(small, small.folder, tmp_path / "prompts.jsonl").already == 4


def test_nothing_is_exported_where_nobody_has_finished(small, tmp_path, capsys):
    place = str(tmp_path / "feedback.sqlite")
    assert cli.main(["annotate", "export", "--db", place, "--out", str(tmp_path / "f.jsonl")]) == 1
    assert "nobody has finished" in capsys.readouterr().err and not (tmp_path / "f.jsonl").exists()
    assert cli.main(["annotate", "gold", "--db", place, "--answers", "absent.jsonl"]) == 1
    assert "--answers absent.jsonl does not exist" in capsys.readouterr().err
    arguments = ["--tasks", "absent.json", "--images", small.folder, "--out", str(tmp_path / "f.jsonl")]
    assert cli.main(["annotate", "from-label-studio", *arguments]) == 1
    assert "--tasks absent.json does not exist" in capsys.readouterr().err
    assert cli.main(["annotate", "people", "--db", place, "--study", "0"]) == 1
    assert "--study 0: expected 1" in capsys.readouterr().err


def test_agreement_of_a_person_counts_all_pictures_and_words(small):
    """The same as the measures of the whole tables, in which most people have not answered most pictures."""
    for number in range(5):
        work(small, person(small, str(number)), 2, answer=answer(score=1 + number % 3, wrong=[number % 5]))
    listed = list(agreement.judgements(small))
    names, shown = sorted({one.person for one in listed}), sorted({one.picture for one in listed})
    ratings, words = np.full((len(shown), len(names)), np.nan), np.full((5 * len(shown), len(names)), np.nan)
    for one in listed:
        row, column = shown.index(one.picture), names.index(one.person)
        ratings[row, column] = one.answer["scores"]["overall"]
        words[5 * row : 5 * row + 5, column] = one.answer["word_labels"]
    for column, name in enumerate(names):
        measured = agreement.measure(listed)["people"][name]
        alpha = measures.krippendorff_alpha(ratings, rater=column)
        assert measured["scores"]["overall"]["alpha"] == pytest.approx(alpha, nan_ok=True)
        assert measured["words"]["kappa"] == pytest.approx(measures.cohen_kappa_with_others(words, column))


def test_agreement_of_a_project(small):
    for number in range(3):
        work(small, person(small, str(number)), 3, answer=answer(score=2 + number, misaligned=[(5, 5)][:number]))
    measured = agreement.measure(list(agreement.judgements(small)))
    assert (measured["pictures"], measured["answers"], measured["pictures_with_two"]) == (4, 8, 4)
    assert sum(measured["scores"]["overall"]["max_difference"]) == 4 and len(measured["people"]) == 3
    assert measured["marks"]["implausibility"] == {"iou": 1, "dice": 1, "both_empty": 0}
    assert measured["words"]["kappa"] is None  # nobody found a wrong word
    biases = [one["scores"]["overall"]["bias"] for one in measured["people"].values()]
    assert min(biases) < 0 < max(biases)
    json.dumps(measured, allow_nan=False)
    listed = list(agreement.judgements(small))
    (who, one), *_ = measured["people"].items()
    assert agreement.measure(listed, {who})["people"] == {who: one} and agreement.measure(listed, ())["people"] == {}
    empty = agreement.measure([])
    assert empty["answers"] == 0 and empty["scores"]["overall"]["alpha"] is None
