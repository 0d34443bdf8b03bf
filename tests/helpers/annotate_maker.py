"""Makes a project of `rahf annotate`: pictures, prompts, a database, people, and answers to give."""

import json
import secrets

from rahf.annotate import importing, people
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
