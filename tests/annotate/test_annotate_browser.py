"""A person's path in Debian's chromium: from the link to the third picture; by mouse, offline, by keyboard."""

import json
import os
import pathlib
import time

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")
pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install rahf[browser]")

import sqlalchemy as sa
from playwright import sync_api as playwright

from rahf.annotate import answers, assignments, importing, people, saving, tables
from tests.helpers import chromium
from tests.helpers.annotate_maker import PROMPT, Site, answer, body, project
from tests.helpers.feedback_maker import HEIGHT, picture

if chromium.PATH is None:
    pytest.skip(chromium.ABSENT, allow_module_level=True)

#: Where screenshots of each step go; nowhere unless it is set.
SHOTS = os.environ.get("RAHF_SCREENSHOTS")


@pytest.fixture
def site(tmp_path):
    database = project(tmp_path, 5, people_per_picture=2, ahead=4, training=1)
    database.clock = time.time
    picture(tmp_path / "pictures" / "t.png")
    right = answer(4, 3, [(30, 20)], wrong=[1])
    line = {"image": "t.png", "prompt": "a red cat, sitting", "explanation": "The cat is blue.", "annotators": [right]}
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    assert importing.import_pictures(database, database.folder, tmp_path / "t.jsonl", "training").new == 1
    site = Site(database)
    yield site
    site.stop()
    database.close()


@pytest.fixture
def page():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium.PATH, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1200, "height": 860})
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        yield page
        assert page.faults == []
        browser.close()


def shot(page, name):
    if SHOTS:
        pathlib.Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def at(page, x, y):
    """Where a place of the picture is on the screen."""
    box = page.locator("#picture").bounding_box()
    return box["x"] + x * box["height"] / HEIGHT, box["y"] + y * box["height"] / HEIGHT


def score(page, value):
    for name in ("plausibility", "alignment", "aesthetics", "overall"):
        page.locator(f"label:has(input[name={name}][value='{value}'])").click()


def until(page, condition):
    """Waits for JavaScript to be true. Playwright's own way of waiting needs `eval`, which our pages forbid."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}; {page.locator('#state').text_content()}")


def saved(page):
    until(page, "document.getElementById('state').textContent === 'Saved'")


def test_a_person_goes_from_the_link_to_the_third_picture(site, page):
    page.goto(site.address + "#token=" + people.add(site.database, "Ann"))
    page.wait_for_selector("#help[open]")
    shot(page, "1-instructions")
    chromium.check_light_and_dark(page, "instructions")
    assert "token" not in page.url
    page.keyboard.press("Enter")  # "Begin" has the focus

    # The training picture: too few marks, and what was expected is told.
    until(page, "document.getElementById('picture').naturalWidth > 0")
    assert page.locator("#training-note").is_visible()
    page.locator("#finish").click()
    assert "Not answered yet" in page.locator("#problem").text_content()
    score(page, 3)
    page.locator("#finish").click()
    page.wait_for_selector("#feedback:not([hidden])")
    told = page.locator("#feedback").text_content()
    assert "The cat is blue." in told and "1 place not marked" in told and "red" in told
    assert page.locator(".mark.expected").count() == 1
    shot(page, "2-training")
    chromium.check_light_and_dark(page, "training")
    page.locator("#finish").click()

    # The first picture by mouse: both kinds of marks, move, undo, redo, words, scores.
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 2')")
    until(page, "document.getElementById('picture').naturalWidth > 0")
    page.mouse.click(*at(page, 20, 10))
    page.mouse.click(*at(page, 45, 30), button="right")
    assert page.locator(".mark.points_implausible").count() == page.locator(".mark.points_misaligned").count() == 1
    page.mouse.move(*at(page, 20, 10))
    page.mouse.down()
    page.mouse.move(*at(page, 24, 16), steps=4)
    page.mouse.move(*at(page, 30, 20), steps=4)
    page.mouse.up()
    page.locator("#undo").click()
    page.locator("#redo").click()
    page.locator(".word", has_text="red").click()
    score(page, 2)
    shot(page, "3-first-picture")
    saved(page)
    draft = site.answers()[-1]
    assert not draft[0] and draft[2]["word_labels"] == [1, 0, 1, 1, 1]
    assert [draft[2][field] for field in ("points_implausible", "points_misaligned")] == [
        [[pytest.approx(30, abs=0.3), pytest.approx(20, abs=0.3)]],
        [[pytest.approx(45, abs=0.3), pytest.approx(30, abs=0.3)]],
    ]
    page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    page.locator("#finish").click()

    # The second without a network, and with a reload: nothing is lost, and nothing is called saved.
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 3')")
    saved(page)
    page.reload()  # through the service worker, which now keeps page and pictures
    until(page, "document.getElementById('picture').naturalWidth > 0")
    site.stop()
    page.mouse.click(*at(page, 10, 10))
    score(page, 4)
    until(page, "document.getElementById('state').textContent.includes('not yet on the server')")
    assert len(site.answers()) == 2
    shot(page, "4-without-network")
    page.reload()
    until(page, "document.querySelectorAll('.mark').length === 1")
    assert "not yet on the server" in page.locator("#state").text_content()
    page.locator("#finish").click()
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 4')")
    site.start()
    saved(page)
    complete, _, stored = site.answers()[2]
    assert (
        complete and stored["scores"] == dict.fromkeys(stored["scores"], 4) and len(stored["points_implausible"]) == 1
    )

    # The third by keyboard alone.
    page.locator("#stage").focus()
    for key in ("ArrowRight", "Shift+ArrowDown", "i", "Shift+ArrowLeft", "m", "Control+z", "m"):
        page.keyboard.press(key)
    shot(page, "5-keyboard")
    for _ in range(12):
        if page.evaluate("document.activeElement.className") == "word":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    while page.evaluate("document.activeElement.name") != "plausibility":
        page.keyboard.press("Tab")
    for key in "5432":
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "finish"
    page.keyboard.press("Control+Enter")
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 5')")
    saved(page)
    complete, _, stored = site.answers()[3]
    assert complete and list(stored["scores"].values()) == [5, 4, 3, 2] and stored["word_labels"] == [1, 0, 1, 1, 1]
    assert [len(stored[field]) for field in ("points_implausible", "points_misaligned")] == [1, 1]

    # Skipping with a reason, and going back.
    page.locator("#skip-button").click()
    page.locator("#skip-reasons input[value='cannot judge']").check()
    shot(page, "6-skip")
    chromium.check_light_and_dark(page, "skip")
    page.locator("#skip-dialog button.primary").click()
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 6')")
    saved(page)
    assert site.answers()[-1][1] == "cannot judge"
    page.keyboard.press("Alt+PageUp")
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 5')")


def test_hostile_texts_run_nowhere_and_administrators_see_all_marks(site, page):
    hostile = "<img src=x onerror=document.title='broken'>"
    with site.database.write() as connection:
        connection.execute(sa.update(tables.pictures).values(prompt=f"{hostile} {PROMPT}"))
    crowd = [people.enter(site.database, people.add(site.database, hostile)) for _ in range(2)]
    site.database.set_project(training=0)
    words = answers.count_words(f"{hostile} {PROMPT}")
    for number, who in enumerate(crowd):
        for held in assignments.hold(site.database, who.id):
            given = answer(words, 1 + 4 * number, [(15 + 20 * number, 20)], [(40, 10 + 20 * number)])
            saving.save(site.database, who.id, body(held, answer=given))
    token = people.add(site.database, hostile, "administrator")
    page.goto(site.address + "admin#token=" + token)
    page.wait_for_selector("#disputed button")
    assert hostile in page.locator("#people").text_content()
    page.locator("#disputed button").first.click()
    page.wait_for_selector("#judged .mark")
    assert page.locator("#judged .mark").count() == 4 and page.title() == "Administration"
    page.locator("#judged .mark").first.click()
    page.locator("#agreement-button").click()
    page.wait_for_selector("#agreement table")
    page.locator("#people button", has_text="Quality").nth(1).click()
    page.wait_for_selector("#person table")
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/7-administration.png", full_page=True)
    chromium.check_light_and_dark(page, "administration")
    page.locator("#judged button.primary").click()
    until(page, "document.getElementById('state').textContent.includes('saved')")
    page.goto(site.address)
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".word")
    assert hostile in page.locator("#prompt").text_content() and page.title() == "Rich feedback"
    assert page.locator("#prompt img").count() == 0


def test_a_critics_marks_come_after_the_persons_own(site, page):
    """The marks are shown when the picture is finished, chosen by keyboard, and stored beside the answer."""
    marks = json.dumps({"points_implausible": [[30, 20, 0.9]], "points_misaligned": [[50, 10, 0.6]]})
    with site.database.write() as connection:
        for number in connection.scalars(sa.select(tables.pictures.c.id)).all():
            connection.execute(sa.insert(tables.premarks).values(picture_id=number, model="other-1", marks=marks))
    site.database.set_project(training=0)
    page.goto(site.address + "#token=" + people.add(site.database, "Ann"))
    page.wait_for_selector("#help[open]")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('picture').naturalWidth > 0")
    assert "other-1" not in page.content() and page.locator("#premarks").is_hidden()
    page.mouse.click(*at(page, 10, 10))
    score(page, 3)
    page.locator("#finish").click()
    page.wait_for_selector("#premarks:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "premarks"
    assert page.locator(".mark.premark").count() == 2 and "other-1" in page.locator("#premarks").text_content()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    saved(page)
    shot(page, "8-critic")
    chromium.check_light_and_dark(page, "a critic's marks")
    (complete, _, own), *_ = site.answers()
    assert complete and [round(v) for v in own["points_implausible"][0]] == [10, 10]
    with site.database.read() as connection:
        aided = connection.execute(sa.select(tables.aided)).one()
    assert json.loads(aided.accepted) == {"points_implausible": [0], "points_misaligned": []} and aided.answer is None
    page.reload()
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 2')")
    page.locator("#previous").click()
    page.wait_for_selector("#premarks:not([hidden])")
    assert page.locator("#premark-list input").first.is_checked()
    page.locator("#finish").click()
    until(page, "document.getElementById('progress').textContent.startsWith('Picture 2')")
    assert page.locator("#premarks").is_hidden()
