"""Makes a project of `rahf annotate`: pictures, prompts, a database, people, and answers to give."""

import json
import secrets
import threading

import sqlalchemy as sa

from rahf.annotate import importing, people, serve, tables
from rahf.annotate.database import open_database
from rahf.core.labels import SCORES
from tests.helpers.feedback_maker import HEIGHT, WIDTH, picture

PROMPT = "a red cat, sitting"


class Clock:
    """Time that a test moves."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


def write_project(folder, count=4, **lines):
    """A folder of pictures and a feedback file with their prompts; extra fields by number of the picture."""
    rows = []
    for number in range(count):
        picture(folder / "pictures" / f"{number}.png", WIDTH + number, HEIGHT)
        rows.append({"image": f"{number}.png", "prompt": f"{PROMPT} {number}", **lines.get(f"_{number}", {})})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pictures", folder / "prompts.jsonl"


def project(folder, count=4, place=None, **rules):
    """An open database with `count` pictures, and a clock; no training and no gold unless asked for."""
    pictures, prompts = write_project(folder, count)
    database = open_database(place or folder / "feedback.sqlite", create=True, clock=Clock())
    database.set_project(**{"training": 0, "gold_every": 0, **rules})
    importing.import_pictures(database, pictures, prompts)
    return database


def person(database, label="A", role="annotator"):
    """A new person who has come in."""
    return people.enter(database, people.add(database, label, role))


def answer(words=5, score=3, implausible=((10, 10),), misaligned=(), wrong=()):
    """A complete answer."""
    return {
        "points_implausible": [list(point) for point in implausible],
        "points_misaligned": [list(point) for point in misaligned],
        "scores": dict.fromkeys(SCORES, score),
        "word_labels": [int(word not in wrong) for word in range(words)],
    }


def body(picture, revision=1, complete=True, **changes):
    """A save as the browser sends it."""
    return {
        "save_id": secrets.token_hex(12),
        "picture": picture,
        "revision": revision,
        "seconds": 12.5,
        "complete": complete,
        "answer": answer(),
        **changes,
    }


class Site:
    """A served project that can be stopped and started again on the same port."""

    def __init__(self, database):
        self.database, self.port = database, 0
        self.start()

    def start(self):
        servers = []
        started = threading.Event()

        def note(server, address):
            servers.append(server)
            self.address, self.port = address, int(address.rsplit(":", 1)[1].strip("/"))
            started.set()

        self.thread = threading.Thread(
            target=serve.serve, args=(self.database,), kwargs={"port": self.port, "started": note}
        )
        self.thread.start()
        assert started.wait(10)
        self.server = servers[0]

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def answers(self):
        with self.database.read() as connection:
            rows = connection.execute(sa.select(tables.answers).order_by(tables.answers.c.id)).all()
        return [(row.complete, row.skip_reason, json.loads(row.answer)) for row in rows]

    def end(self):
        """The name that the programs of benchmarks/annotate.py use."""
        self.stop()
