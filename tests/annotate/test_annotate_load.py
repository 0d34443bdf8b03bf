"""The programs of benchmarks/annotate.py in small: nothing acknowledged is lost or doubled."""

import os
import pathlib
import sys
import threading

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")

import sqlalchemy as sa

from rahf.annotate import assignments, exporting, quality, saving, tables
from rahf.annotate.answers import BadAnswer
from rahf.annotate.database import open_database
from tests.helpers.annotate_maker import Site, answer, body, person, project

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch):
    """The module benchmarks/annotate.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("annotate", None)
    import annotate

    yield annotate
    sys.modules.pop("annotate", None)


def in_a_thread(place):
    """A server in this process, which starts faster than one of its own."""
    return Site(open_database(place))


def test_a_killed_server_loses_nothing_that_it_acknowledged(load, tmp_path):
    counts = load.kills(str(tmp_path / "a.sqlite"), tmp_path / "pictures", times=1, crowd=3, most_seconds=0.2)
    assert counts["acknowledged"] > 0 == counts["lost"] == counts["doubled"]
    assert counts["repeated_on_sending_again"] == counts["unsure_that_were_stored"] and counts["all_there_in_the_end"]


def test_saves_at_the_same_moment_through_one_server(load, tmp_path):
    counts = load.burst(str(tmp_path / "a.sqlite"), tmp_path / "pictures", crowd=6, rounds=2, start=in_a_thread)
    assert (counts["saves"], counts["lost"], counts["doubled"], counts["answers"]) == (12, 0, 0, 6)
    assert counts["newest_revision_everywhere"] and counts["faults"] == []


def test_pages_of_a_larger_project(load, tmp_path):
    counts = load.pages(str(tmp_path / "a.sqlite"), tmp_path / "pictures", pictures=40, crowd=5, start=in_a_thread)
    assert counts["answers"] == 120 and len(counts["ms"]) == 10


def test_changes_made_together_do_not_touch_each_other(tmp_path):
    """Some threads save, others send what is refused, one breaks the transaction itself."""
    database = project(tmp_path, 8, people_per_picture=8, ahead=1)
    crowd = [person(database, str(number)) for number in range(6)]
    held = [assignments.hold(database, who.id)[0] for who in crowd]
    outcomes = {}

    def run(name, change):
        try:
            outcomes[name] = change()
        except Exception as error:
            outcomes[name] = type(error)

    def broken(connection):
        connection.execute(sa.insert(tables.settings).values(name="half", value="written"))
        connection.execute(sa.insert(tables.settings).values(name="secret", value="there already"))

    jobs = {f"save {n}": lambda n=n: saving.save(database, crowd[n].id, body(held[n])).current for n in range(6)}
    bad = {**answer(), "word_labels": [5]}
    jobs["bad"] = lambda: saving.save(database, crowd[0].id, body(held[0], 2, answer=bad))
    jobs["broken"] = lambda: database.together(broken)
    threads = [threading.Thread(target=run, args=job) for job in jobs.items()]
    with database._lock:  # all wait for it, so one of them makes all changes
        for thread in threads:
            thread.start()
        while len(database._jobs) < len(jobs):
            pass
    for thread in threads:
        thread.join()
    assert outcomes.pop("bad") is BadAnswer and outcomes.pop("broken") is sa.exc.IntegrityError
    assert outcomes == {f"save {n}": True for n in range(6)} and database.setting("half") is None
    with database.read() as connection:
        assert len(connection.execute(sa.select(tables.saves)).all()) == 6
    database.close()


def test_the_same_rules_in_postgresql(tmp_path):
    """Run with RAHF_TEST_POSTGRESQL=postgresql://USER@HOST/NAME, an empty database."""
    place = os.environ.get("RAHF_TEST_POSTGRESQL")
    if place is None:
        pytest.skip("needs RAHF_TEST_POSTGRESQL, the address of an empty PostgreSQL database")
    database = project(tmp_path, 3, place=place, people_per_picture=2, ahead=2)
    crowd = [person(database, name) for name in "ABC"]
    for score, who in enumerate(crowd, 2):
        while held := assignments.hold(database, who.id):
            sent = body(held[0], answer=answer(score=score))
            assert saving.save(database, who.id, sent).current and saving.save(database, who.id, sent).repeated
    quality.adjudicate(database, crowd[0].id, 1, answer(score=1))
    assert quality.overview(database)["counts"]["work"]["answers"] == 6
    assert quality.person(database, crowd[0].pseudonym)["answers"] > 0
    exported = list(exporting.collect(database, adjudicated=True))
    assert [len(one.answers) for one in exported] == [1, 2, 2]
    database.close()
    again = open_database(place)
    assert again.project.people_per_picture == 2 and len(again.secret) == 32
    again.close()
