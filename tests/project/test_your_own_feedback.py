"""The circle of docs/your-own-feedback.md with simulated people, through the HTTP interface that browsers use."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")

from fastapi.testclient import TestClient

from data_pipelines import store
from rahf.annotate import application, importing, people
from rahf.annotate.database import open_database
from rahf.cli import main as cli
from rahf.core.labels import SCORES
from rahf.text.words import split_words
from tests.helpers.annotate_maker import body

ROOT = pathlib.Path(__file__).resolve().parents[2]
PICTURES, PEOPLE = 18, 3
WIDTH, HEIGHT = 64, 48
COLOURS = ("red", "blue", "green")


def fault(number: int) -> tuple[int, int] | None:
    """Where picture `number` has a fault."""
    return None if number % 3 == 0 else (12 + 2 * number, 10 + number)


def write_pictures(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Grey pictures with a white square as fault; every second one says a colour that is not there."""
    pictures, lines = folder / "pictures", []
    pictures.mkdir()
    for number in range(PICTURES):
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + number, np.uint8)
        if (place := fault(number)) is not None:
            pixels[place[1] - 3 : place[1] + 3, place[0] - 3 : place[0] + 3] = 255
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        lines.append({"image": f"{number}.png", "prompt": f"a {COLOURS[number % 3]} wall, number {number}"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return pictures, folder / "prompts.jsonl"


def opinion(prompt: str, rng: np.random.Generator) -> dict:
    """What a simulated person answers: the fault with a jitter, a wrong colour, scores by both, now and then off."""
    number = int(prompt.rsplit(" ", 1)[1])
    place = fault(number)
    marks = [] if place is None else [[float(v + rng.normal()) for v in place]]
    wrong = number % 2 == 1
    scores = {
        "plausibility": 5 if place is None else 2,
        "alignment": 2 if wrong else 5,
        "aesthetics": 3,
        "overall": 4 if place is None and not wrong else 2,
    }
    if rng.random() < 0.2:
        scores["aesthetics"] += int(rng.choice([-1, 1]))
    return {
        "points_implausible": marks,
        "points_misaligned": [],
        "scores": scores,
        "word_labels": [int(not (wrong and word in COLOURS)) for word in split_words(prompt)],
    }


def work(app, token: str, seed: int) -> int:
    """One person's work, as the page does it; the number of pictures."""
    client = TestClient(app, base_url="http://127.0.0.1:8600")
    form = client.post("/api/enter", json={"token": token}).json()["form_token"]
    rng, done = np.random.default_rng(seed), 0
    while items := client.post("/api/work", json={}, headers={"x-form-token": form}).json()["items"]:
        for item in items:
            picture = client.get(f"/pictures/{item['id']}")
            assert picture.status_code == 200
            sent = body(item["id"], answer=opinion(item["prompt"], rng))
            receipt = client.post("/api/saves", json=sent, headers={"x-form-token": form})
            assert receipt.status_code == 200 and receipt.json()["current"]
            done += 1
    return done


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """A folder in which everybody has worked: pictures, feedback.sqlite, agreement.json, feedback.jsonl, data."""
    folder = tmp_path_factory.mktemp("own")
    pictures, prompts = write_pictures(folder)
    place = folder / "feedback.sqlite"
    database = open_database(place, create=True)
    database.set_project(people_per_picture=PEOPLE, training=0, gold_every=0)
    importing.import_pictures(database, pictures, prompts)
    app = application.create(database)
    tokens = [people.add(database, f"Person {number}") for number in range(PEOPLE)]
    assert [work(app, token, seed) for seed, token in enumerate(tokens)] == [PICTURES] * PEOPLE
    database.close()
    agreement, feedback, data = (str(folder / name) for name in ("agreement.json", "feedback.jsonl", "data"))
    assert cli.main(["annotate", "agreement", "--db", str(place), "--json", agreement]) == 0
    assert cli.main(["annotate", "export", "--db", str(place), "--out", feedback]) == 0
    arguments = ["prepare", "feedback", "--annotations", feedback, "--images", str(pictures)]
    assert cli.main([*arguments, "--check"]) == 0
    assert cli.main([*arguments, "--out", data, "--dev", "0", "--test", "0.3"]) == 0
    return folder


def test_from_clicks_to_a_dataset(annotated):
    agreement = json.loads((annotated / "agreement.json").read_text())
    assert agreement["scores"]["plausibility"]["alpha"] == 1
    assert agreement["scores"]["aesthetics"]["alpha"] < 0.9
    records = [
        record
        for split, count in store.splits(annotated / "data").items()
        if count
        for record in store.open_split(annotated / "data", split)
    ]
    assert len(records) == PICTURES
    for record in records:
        number = int(record.prompt.rsplit(" ", 1)[1])
        scores = dict(zip(SCORES, record.scores))
        assert scores["plausibility"] == (1 if fault(number) is None else 0.25)
        assert record.word_labels[1] == number % 2 ^ 1 and sum(record.word_labels) >= len(record.words) - 1
        assert len(record.annotator_implausibility) == PEOPLE


@pytest.mark.slow
def test_the_whole_circle(annotated, tiny_run, tmp_path):
    """Train from a critic, evaluate, report with the one before, export, score the pictures again."""
    from tests.helpers import train_maker

    data, run = annotated / "data", tmp_path / "run"
    config = tmp_path / "own.py"
    tiny = json.loads((tiny_run / "config.json").read_text())
    text = train_maker.CONFIG.format(data=str(data)).replace("def config():", "def other():")
    config.write_text(
        text
        + f"""
import dataclasses, pathlib
from rahf import config as config_lib

def config():
    start = config_lib.read_saved(pathlib.Path({str(tiny_run / "config.json")!r}))
    own = other()
    return dataclasses.replace(
        own, model=start.model, start=StartConfig(model={str(tiny_run)!r}),
        data=dataclasses.replace(start.data, path={str(data)!r}, tokenizer="start", batch_size=8, eval_batch_size=8,
                                 eval_split="test"),
    )
"""
    )
    assert tiny["model"]["image_size"] == 32
    assert train_maker.train(config, run) == 0
    assert cli.main(["evaluate", str(run), "--data", str(data), "--split", "test"]) == 0
    page = tmp_path / "report.html"
    arguments = ["report", str(tiny_run), str(run), "--data", str(data), "--out", str(page), "--resamples", "20"]
    assert cli.main(arguments) == 0 and "a person" in page.read_text()
    assert cli.main(["export", str(run), str(tmp_path / "own.rahf")]) == 0
    candidates = annotated / "candidates.jsonl"
    lines = [json.loads(line) for line in (annotated / "prompts.jsonl").read_text().splitlines()]
    candidates.write_text("".join(json.dumps(line | {"image": f"pictures/{line['image']}"}) + "\n" for line in lines))
    scores = tmp_path / "scores"
    assert cli.main(["score", str(tmp_path / "own.rahf"), str(candidates), "--out", str(scores)]) == 0
    assert json.loads((scores / "summary.json").read_text())["scored"] == PICTURES


def test_the_document_names_commands_in_the_order_of_the_circle():
    text = (ROOT / "docs/your-own-feedback.md").read_text()
    named = re.findall(r"^rahf ([a-z]+)", text, re.MULTILINE)
    order = ["annotate", "prepare", "import", "train", "evaluate", "report", "export", "score"]
    assert [name for name in dict.fromkeys(named) if name in order] == order
