"""Load on `rahf annotate`: many people saving at once, pages of a large project, kills while people save.

Usage: python benchmarks/annotate.py [--people 50] [--rounds 20] [--pictures 100000] [--kills 20] [--db postgresql://…]

Prints one JSON line for each of the three. The server is a process of its own, and the people are threads of this one,
on the same machine: what the threads compute is part of the latencies.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import pathlib
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import sqlalchemy as sa
from PIL import Image

from rahf.annotate import assignments, importing, people, tables
from rahf.annotate.database import Database, open_database
from rahf.core.labels import SCORES

PROMPT = "a red cat on a blue mat, two dogs"
WORDS = 9


class Server:
    """A server process on a free port."""

    def __init__(self, place: str):
        command = [sys.executable, "-m", "rahf.cli", "annotate", "--db", place, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("serving http://"):
            raise RuntimeError(f"the server did not start: {line}")
        self.port = int(line.strip().rstrip("/").rsplit(":", 1)[1])

    def end(self, how: int = signal.SIGINT) -> None:
        self.process.send_signal(how)
        self.process.wait(30)
        self.process.stdout.close()


class Client:
    """A person with a connection that stays open."""

    def __init__(self, port: int, token: str):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.headers = {"Content-Type": "application/json", "Connection": "keep-alive"}
        status, me, headers = self._request("POST", "/api/enter", {"token": token})
        if status != 200:
            raise RuntimeError(f"cannot come in: {me}")
        self.headers |= {"Cookie": headers["set-cookie"].split(";")[0], "X-Form-Token": me["form_token"]}

    def _request(self, method: str, path: str, tree=None):
        body = None if tree is None else json.dumps(tree)
        self.connection.request(method, path, body, self.headers)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read()), response.headers

    def close(self) -> None:
        self.connection.close()

    def post(self, path: str, tree) -> tuple[int, dict]:
        return self._request("POST", path, tree)[:2]

    def get(self, path: str) -> tuple[int, dict]:
        return self._request("GET", path)[:2]


def answer(generator: random.Random) -> dict:
    """A complete answer."""
    return {
        "points_implausible": [[generator.uniform(0, 64), generator.uniform(0, 64)] for _ in range(2)],
        "points_misaligned": [],
        "scores": {name: generator.randint(1, 5) for name in SCORES},
        "word_labels": [generator.randint(0, 1) for _ in range(WORDS)],
    }


def body(picture: int, revision: int, generator: random.Random) -> dict:
    """A save."""
    return {
        "save_id": secrets.token_hex(12),
        "picture": picture,
        "revision": revision,
        "seconds": 20,
        "complete": True,
        "answer": answer(generator),
    }


def make(place: str, folder: pathlib.Path, pictures: int, **rules) -> Database:
    """A project whose pictures are one file with many uids."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (200, 90, 60)).save(folder / "0.png")
    database = open_database(place, create=True)
    database.set_project(training=0, gold_every=0, **rules)
    with open(folder / "first.jsonl", "w") as file:
        file.write(json.dumps({"image": "0.png", "uid": "0", "prompt": PROMPT}) + "\n")
    importing.import_pictures(database, folder, folder / "first.jsonl")
    with database.read() as connection:
        first = dict(connection.execute(sa.select(tables.pictures)).one()._mapping)
    rows = [{**first, "id": n + 1, "uid": str(n), "position": random.random()} for n in range(1, pictures)]
    with database.write() as connection:
        for start in range(0, len(rows), 5000):
            connection.execute(sa.insert(tables.pictures), rows[start : start + 5000])
    return database


def percentile(values: list[float], share: float) -> float:
    """The smallest value that the share of values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def burst(place: str, folder: pathlib.Path, crowd: int, rounds: int, pause: float = 0.0, start=Server) -> dict:
    """People save again and again; every second save is sent twice.

    With a pause each person waits up to twice as many seconds before each save; without one all save at once.
    """
    database = make(place, folder, 2 * crowd, people_per_picture=100, ahead=1)
    tokens = [people.add(database, f"person {number}") for number in range(crowd)]
    server = start(place)
    latencies: list[float] = []
    acknowledged: list[str] = []
    faults: list[str] = []
    barrier = threading.Barrier(crowd)

    def work(number: int) -> None:
        generator = random.Random(number)
        try:
            client = Client(server.port, tokens[number])
            held = client.post("/api/work", {})[1]["items"][0]["id"]
            for turn in range(rounds):
                sent = body(held, turn + 1, generator)
                if pause:
                    time.sleep(generator.uniform(0, 2 * pause))
                else:
                    barrier.wait(60)
                for _ in range(1 + turn % 2):
                    begin = time.perf_counter()
                    status, receipt = client.post("/api/saves", sent)
                    latencies.append(time.perf_counter() - begin)
                    if status != 200 or receipt["save_id"] != sent["save_id"]:
                        faults.append(f"{status} {receipt}")
                acknowledged.append(sent["save_id"])
            client.close()
        except Exception as error:  # shown at the end; the others must not wait for ever
            faults.append(repr(error))
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.end()
    with database.read() as connection:
        stored = list(connection.scalars(sa.select(tables.saves.c.save_id)))
        answers = connection.execute(sa.select(tables.answers.c.revision)).scalars().all()
    database.close()
    return {
        "what": "steady" if pause else "burst",
        "people": crowd,
        "saves": len(acknowledged),
        "requests": len(latencies),
        "median_ms": round(1000 * statistics.median(latencies), 1),
        "p95_ms": round(1000 * percentile(latencies, 0.95), 1),
        "worst_ms": round(1000 * max(latencies), 1),
        "lost": len(set(acknowledged) - set(stored)),
        "doubled": len(stored) - len(set(stored)) + abs(len(stored) - len(acknowledged)),
        "answers": len(answers),
        "newest_revision_everywhere": set(answers) == {rounds},
        "faults": faults[:3],
    }


def pages(place: str, folder: pathlib.Path, pictures: int, per_picture: int = 3, crowd: int = 60, start=Server) -> dict:
    """Time of each page of a large project, the median of five."""
    database = make(place, folder, pictures, people_per_picture=per_picture + 1)
    generator = random.Random(0)
    tokens = [people.add(database, f"person {number}") for number in range(crowd)]
    admin = people.add(database, "admin", "administrator")
    ids = list(range(1, crowd + 1))
    stored = [json.dumps(answer(generator), separators=(",", ":")) for _ in range(200)]
    numbers = dict.fromkeys(ids, 0)
    now = database.clock()
    for first in range(1, pictures + 1, 5000):
        rows, held, changed = [], [], []
        for picture in range(first, min(first + 5000, pictures + 1)):
            for person in generator.sample(ids, per_picture):
                rows.append(
                    {
                        "picture_id": picture, "person_id": person, "complete": True, "skip_reason": None,
                        "answer": generator.choice(stored), "revision": 1, "saved": now,
                        "seconds": generator.uniform(5, 60),
                    }
                )  # fmt: skip
                held.append(
                    {
                        "picture_id": picture, "person_id": person, "state": "answered", "until": now,
                        "number": numbers[person],
                    }
                )  # fmt: skip
                numbers[person] += 1
            changed.append({"key": picture, "spread": generator.choice([0.0, 0.25, 0.5, 0.75, 1.0])})
        with database.write() as connection:
            connection.execute(sa.insert(tables.answers), rows)
            connection.execute(sa.insert(tables.assignments), held)
            connection.execute(
                sa.update(tables.pictures)
                .where(tables.pictures.c.id == sa.bindparam("key"))
                .values(taken=per_picture, answered=per_picture, dispute=sa.bindparam("spread")),
                changed,
            )
    with database.read() as connection:
        pseudonym = connection.scalar(sa.select(tables.people.c.pseudonym).where(tables.people.c.id == 1))
    server = start(place)
    measured = {}
    requests = [
        (admin, "GET", "/api/admin/overview"),
        (admin, "GET", "/api/admin/disputed"),
        (admin, "GET", "/api/admin/disputed?page=300"),
        (admin, "GET", "/api/admin/set-aside"),
        (admin, "GET", f"/api/admin/people/{pseudonym}"),
        (admin, "GET", "/api/admin/pictures/1"),
        (admin, "GET", "/api/admin/agreement"),
        (tokens[0], "GET", "/api/me"),
        (tokens[0], "GET", "/api/history"),
        (tokens[0], "POST", "/api/work"),
    ]
    for token, method, path in requests:
        client = Client(server.port, token)  # a new connection: one that is idle for long is closed
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            status, _ = client.get(path) if method == "GET" else client.post(path, {})
            times.append(time.perf_counter() - begin)
            if status != 200:
                raise RuntimeError(f"{path}: {status}")
        client.close()
        measured[path.replace(pseudonym, "PERSON")] = round(1000 * statistics.median(times), 1)
    server.end()
    database.close()
    return {"what": "pages", "pictures": pictures, "answers": pictures * per_picture, "people": crowd, "ms": measured}


def kills(place: str, folder: pathlib.Path, times: int, crowd: int = 6, most_seconds: float = 1.0) -> dict:
    """The server is killed while people save. What was acknowledged must be there; the rest is sent again."""
    database = make(place, folder, crowd, people_per_picture=100, ahead=1)
    tokens = [people.add(database, f"person {number}") for number in range(crowd)]
    held = []
    for number in range(crowd):
        (picture,) = assignments.hold(database, number + 1)
        held.append(picture)
    generator = random.Random(1)
    revision = [0] * crowd
    acknowledged: list[str] = []
    unsure: list[tuple[int, dict]] = []
    for _ in range(times):
        server = Server(place)
        stop = threading.Event()

        def work(number: int, port: int = server.port, stop: threading.Event = stop) -> None:
            sent = client = None
            try:
                client = Client(port, tokens[number])
                while not stop.is_set():
                    revision[number] += 1
                    sent = body(held[number], revision[number], random.Random(revision[number]))
                    status, _ = client.post("/api/saves", sent)
                    if status == 200:
                        acknowledged.append(sent["save_id"])
                    sent = None
                    time.sleep(0.01)
            except (OSError, http.client.HTTPException, ValueError):
                if sent is not None:
                    unsure.append((number, sent))  # the answer was lost on the way: it may or may not be stored
            finally:
                if client is not None:
                    client.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(crowd)]
        before = len(acknowledged)
        for thread in threads:
            thread.start()
        while len(acknowledged) == before and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)  # a loaded machine takes seconds to let the first person in
        time.sleep(generator.uniform(0, most_seconds))
        server.end(signal.SIGKILL)
        stop.set()
        for thread in threads:
            thread.join()
    with database.read() as connection:
        stored = list(connection.scalars(sa.select(tables.saves.c.save_id)))
    lost = set(acknowledged) - set(stored)
    already = sum(sent["save_id"] in stored for _, sent in unsure)
    server = Server(place)
    repeated = 0
    for number, sent in unsure:
        client = Client(server.port, tokens[number])
        status, receipt = client.post("/api/saves", sent)
        client.close()
        repeated += status == 200 and receipt["repeated"]
    server.end()
    with database.read() as connection:
        after = list(connection.scalars(sa.select(tables.saves.c.save_id)))
        newest = list(connection.scalars(sa.select(tables.answers.c.revision)))
    database.close()
    return {
        "what": "kills",
        "kills": times,
        "acknowledged": len(acknowledged),
        "lost": len(lost),
        "unsure": len(unsure),
        "unsure_that_were_stored": already,
        "repeated_on_sending_again": repeated,
        "doubled": len(after) - len(set(after)),
        "all_there_in_the_end": {sent["save_id"] for _, sent in unsure} | set(acknowledged) <= set(after),
        "answers": len(newest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=("burst", "steady", "pages", "kills"), default=None)
    parser.add_argument("--db", default=None, help="an empty PostgreSQL database, for one --only (default: SQLite)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for only, run in (
            ("burst", lambda place, own: burst(place, own, args.people, args.rounds)),
            ("steady", lambda place, own: burst(place, own, args.people, args.rounds, 1.0)),
            ("pages", lambda place, own: pages(place, own, args.pictures)),
            ("kills", lambda place, own: kills(place, own, args.kills)),
        ):
            if args.only in (None, only):
                own = folder / only
                own.mkdir()
                print(json.dumps({**run(args.db or str(own / "db.sqlite"), own), "cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    main()
