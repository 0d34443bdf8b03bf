"""The HTTP interface, and one test for each class of hole that annotation tools have had."""

import ast
import hmac
import json
import pathlib
import re

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install rahf[annotate]")
pytest.importorskip("fastapi", reason="needs FastAPI: pip install rahf[annotate]")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install rahf[annotate]")

from fastapi.testclient import TestClient
from PIL import Image

from rahf.annotate import application, importing, people, serve
from rahf.annotate.database import open_database
from rahf.annotate.guards import MOST_BYTES, Rate
from rahf.core.errors import AnnotateError
from tests.helpers.annotate_maker import answer, body, project, write_project

PACKAGE = pathlib.Path(application.__file__).parent


class Browser:
    """A browser that has come in as somebody."""

    def __init__(self, app, token=None, **join):
        self.client = TestClient(app, base_url="http://127.0.0.1:8600")
        sent = {"token": token} if token else join
        entered = self.client.post("/api/enter" if token else "/api/join", json=sent)
        self.me, self.entered = entered.json(), entered
        self.form = {"x-form-token": self.me.get("form_token", "")}

    def get(self, path, **options):
        return self.client.get(path, **options)

    def post(self, path, tree, **headers):
        return self.client.post(path, json=tree, headers={**self.form, **headers})

    def work(self):
        return self.post("/api/work", {}).json()["items"]


@pytest.fixture
def site(tmp_path):
    """An application with four pictures; `site.come(role)` lets somebody in."""
    database = project(tmp_path, 4, people_per_picture=2, ahead=1)
    app = application.create(database)

    class Site:
        pass

    Site.database, Site.app = database, app
    Site.come = staticmethod(lambda role="annotator": Browser(app, people.add(database, f"Name of {role}", role)))
    yield Site
    database.close()


def test_a_person_works_from_link_to_export(site):
    browser = site.come()
    assert browser.me["role"] == "annotator" and len(browser.me["scales"]) == 4
    assert all(len(scale["anchors"]) == 5 for scale in browser.me["scales"])
    for number in range(4):
        (item,) = browser.work()
        assert item["number"] == number and item["words"] == 5
        assert "".join(text for text, _ in item["pieces"]) == item["prompt"]
        picture = browser.get(f"/pictures/{item['id']}")
        assert picture.headers["content-type"] == "image/png" and picture.content[:4] == b"\x89PNG"
        sent = body(item["id"])
        receipt = browser.post("/api/saves", sent).json()
        assert receipt["current"] and not receipt["repeated"]
        assert browser.post("/api/saves", sent).json()["repeated"]
        again = browser.get(f"/api/items/{item['id']}").json()
        assert again["answer"] == sent["answer"] and again["complete"] and again["state"] == "answered"
    done = browser.post("/api/work", {}).json()
    assert done["items"] == [] and len(done["completion_code"]) == 8 and done["progress"]["answered"] == 4
    assert [entry["state"] for entry in browser.get("/api/history").json()] == ["answered"] * 4
    assert browser.post("/api/leave", {}).status_code == 200
    assert browser.get("/api/me").status_code == 401


def test_training_is_answered_at_once_and_not_before(tmp_path):
    database = project(tmp_path, 1, training=1)
    tree = {"image": "0.png", "uid": "t", "prompt": "a cat", "explanation": "Look", "annotators": [answer(2, 1)]}
    (tmp_path / "t.jsonl").write_text(json.dumps(tree))
    importing.import_pictures(database, database.folder, tmp_path / "t.jsonl", "training")
    browser = Browser(application.create(database), people.add(database, "A"))
    (item,) = browser.work()
    assert item["training"] and "feedback" not in item
    draft = browser.post("/api/saves", body(item["id"], 1, False, answer={})).json()
    assert "feedback" not in draft
    receipt = browser.post("/api/saves", body(item["id"], 2, answer=answer(2, 5))).json()
    assert receipt["feedback"]["right"] == 3 and receipt["feedback"]["explanation"] == "Look"
    assert receipt["feedback"]["answer"]["scores"]["overall"] == 1
    assert not browser.work()[0]["training"]
    database.close()


def test_administrators_see_quality_disputes_and_decide(site):
    crowd, admin = [site.come() for _ in range(2)], site.come("administrator")
    for score, browser in zip((1, 5), crowd):
        for _ in range(4):
            (item,) = browser.work()
            browser.post("/api/saves", body(item["id"], answer=answer(score=score)))
    overview = admin.get("/api/admin/overview").json()
    assert overview["counts"]["work"] == {"pictures": 4, "answers": 8, "wanted": 8, "finished": 4, "set_aside": 0}
    assert overview["disputed"] == 4 and [one["answers"] for one in overview["people"]] == [4, 4, 0]
    disputed = admin.get("/api/admin/disputed").json()
    assert [one["dispute"] for one in disputed] == [1] * 4
    number = disputed[0]["id"]
    judged = admin.get(f"/api/admin/pictures/{number}").json()
    assert len(judged["answers"]) == 2 and judged["decision"] is None
    assert admin.post("/api/admin/decisions", {"picture": number, "answer": {}}).status_code == 400
    assert admin.post("/api/admin/decisions", {"picture": number, "answer": answer(score=2)}).status_code == 200
    assert len(admin.get("/api/admin/disputed").json()) == 3
    assert admin.get(f"/api/admin/pictures/{number}").json()["decision"]["scores"]["overall"] == 2
    agreement = admin.get("/api/admin/agreement").json()
    assert agreement["scores"]["overall"]["max_difference"] == [0, 0, 0, 0, 4]
    quality = admin.get(f"/api/admin/people/{crowd[0].me['pseudonym']}").json()
    assert quality["scores"]["overall"]["bias"] == -4 and quality["drift"] == 0 and quality["median_seconds"] == 12.5
    token = admin.post("/api/admin/people", {"label": "New"}).json()["token"]
    new = Browser(site.app, token)
    assert new.me["role"] == "annotator"
    assert admin.post("/api/admin/deactivate", {"pseudonym": new.me["pseudonym"]}).status_code == 200
    assert new.get("/api/me").status_code == 401
    assert admin.post("/api/admin/deactivate", {"pseudonym": admin.me["pseudonym"]}).status_code == 400
    renewed = admin.post("/api/admin/renew", {"pseudonym": new.me["pseudonym"]}).json()["token"]
    assert Browser(site.app, renewed).entered.status_code == 200
    (item,) = new_work = Browser(site.app, renewed).work() or [None]
    assert item is None and new_work


def test_pictures_set_aside_are_listed_with_reasons(site):
    admin = site.come("administrator")
    for browser in (site.come(), site.come()):
        (item,) = browser.work()
        number = item["id"]
        browser.post("/api/saves", body(number, complete=False, answer={}, skip_reason="other: <b>too dark</b>"))
    listed = admin.get("/api/admin/set-aside").json()
    assert [(one["id"], one["reasons"]) for one in listed if one["id"] == number] == [
        (number, ["other: <b>too dark</b>"] * 2)
    ]


# Holes


def test_nobody_can_sign_up_and_there_are_no_default_credentials(site):
    client = TestClient(site.app, base_url="http://127.0.0.1:8600")
    for path in ("/api/me", "/api/history", "/api/items/1", "/pictures/1", "/api/admin/overview"):
        assert client.get(path).status_code == 401
    for path in ("/api/work", "/api/saves", "/api/admin/people", "/api/leave"):
        assert client.post(path, json={}).status_code == 401
    for token in ("admin", "admin.admin", "", "x" * 5000, None, 5, ["a"]):
        assert client.post("/api/enter", json={"token": token}).status_code in (401, 429)
    for path in ("/docs", "/openapi.json", "/redoc", "/api/register", "/signup"):
        assert client.get(path).status_code == 404
    # The only way without a token is one administrator, made once in an empty database, with a random token.
    assert serve.first_administrator(site.database) is not None
    assert serve.first_administrator(site.database) is None


def test_one_cannot_see_or_change_the_work_of_another(site):
    first, second = site.come(), site.come()
    (item,) = first.work()
    first.post("/api/saves", body(item["id"]))
    others = [number for number in range(1, 9) if number != second.work()[0]["id"]]
    for number in others:
        for path in (f"/api/items/{number}", f"/pictures/{number}"):
            assert second.get(path).status_code == 404
        assert second.post("/api/saves", body(number)).status_code == 404
        assert second.post("/api/premarks", {"picture": number}).status_code == 404
    stolen = body(item["id"], 9)
    first.post("/api/saves", stolen)
    assert second.post("/api/saves", stolen).status_code == 404
    for path in ("overview", "disputed", "set-aside", "agreement", f"people/{first.me['pseudonym']}", "pictures/1"):
        assert second.get(f"/api/admin/{path}").status_code == 404
    for path in ("people", "renew", "deactivate", "decisions"):
        tree = {"label": "x", "role": "administrator", "pseudonym": first.me["pseudonym"], "picture": 1}
        assert second.post(f"/api/admin/{path}", tree).status_code == 404
    assert first.get("/api/me").status_code == 200


def test_a_change_needs_the_form_token_and_our_own_page(site):
    browser = site.come()
    cookie = browser.entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert browser.client.post("/api/work", json={}).status_code == 403
    other = site.come()
    assert browser.post("/api/work", {}, **other.form).status_code == 403
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert browser.post("/api/work", {}, **headers).status_code == 403
    assert browser.post("/api/work", {}, origin="http://127.0.0.1:8600").status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        sent = browser.client.post("/api/work", content=b"{}", headers={**browser.form, "content-type": kind})
        assert sent.status_code == 415
    for method in ("PUT", "DELETE", "PATCH"):
        assert browser.client.request(method, "/api/work", headers=browser.form).status_code == 405
    over_tls = TestClient(site.app, base_url="https://127.0.0.1")
    entered = over_tls.post("/api/enter", json={"token": people.add(site.database, "B")})
    assert "secure" in entered.headers["set-cookie"].lower() and "strict-transport-security" in entered.headers


def test_a_name_that_points_here_by_dns_rebinding_is_refused(site):
    browser = site.come()
    for host in ("evil.example", "127.0.0.1.evil.example", "", "a@b", "évil"):
        found = browser.client.get("/api/me", headers={"host": host.encode()})
        assert found.status_code == 421, host
    named = application.create(site.database, ["Rate.example"])
    client = TestClient(named, base_url="http://rate.example")
    assert client.get("/").status_code == 200
    assert TestClient(named, base_url="http://[::1]:8600").get("/").status_code == 200


HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def test_hostile_texts_are_data_and_scripts_stand_in_files_only(tmp_path):
    pictures, prompts = write_project(tmp_path, 1)
    (pictures / "0.png").rename(pictures / f"{HOSTILE.replace('/', '')}.png")
    prompts.write_text(json.dumps({"image": f"{HOSTILE.replace('/', '')}.png", "uid": HOSTILE, "prompt": HOSTILE}))
    database = open_database(tmp_path / "a.sqlite", create=True)
    database.set_project(title=HOSTILE, training=0)
    importing.import_pictures(database, pictures, prompts)
    app = application.create(database)
    browser, admin = (Browser(app, people.add(database, HOSTILE, role)) for role in people.ROLES)
    (item,) = browser.work()
    assert item["prompt"] == HOSTILE
    responses = [admin.get(path) for path in ("/", "/admin", "/api/me", "/api/admin/overview", "/api/admin/pictures/1")]
    responses += [browser.get("/" + HOSTILE), browser.get("/pictures/1"), admin.get(f"/api/admin/people/{HOSTILE}")]
    for response in responses:
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        if response.headers["content-type"].startswith("text/html"):
            assert "alert(" not in response.text  # pages are files that hold no data
        else:
            assert response.headers["content-type"] in ("application/json", "image/png")
    database.close()
    pages = {file.name: file.read_text() for file in (PACKAGE / "page").glob("*.*")}
    assert {"annotate.html", "admin.html", "annotate.js", "admin.js", "style.css"} <= set(pages)
    for name, text in pages.items():
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+\s*=|style\s*=|javascript:", text, re.I), name
        if name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
        assert not re.search(r"(src|href|url\(|import|fetch\()\s*[=(]?\s*[\"']?(https?:)?//", text), f"{name}: a CDN"


def test_pictures_are_served_by_number_only(site, tmp_path):
    admin = site.come("administrator")
    paths = ("0.png", "..%2f..%2ffeedback.sqlite", "%2e%2e/%2e%2e/etc/passwd", "-1", "1.0", "٣", "9" * 30, "1%00", "99")
    for path in paths:
        assert admin.get(f"/pictures/{path}").status_code == 404, path
    for path in ("/feedback.sqlite", "/page/annotate.html", "/static/../application.py", "//etc/passwd"):
        assert admin.get(path).status_code == 404
    pictures = pathlib.Path(site.database.folder)
    (tmp_path / "secret.png").write_bytes((pictures / "0.png").read_bytes())
    (pictures / "0.png").unlink()
    (pictures / "0.png").symlink_to(tmp_path / "secret.png")  # after the import
    (pictures / "1.png").write_text("<html><script>alert(1)</script></html>")
    (pictures / "2.png").unlink()
    for number in (1, 2, 3):
        found = admin.get(f"/pictures/{number}")
        assert found.status_code == 410 and found.headers["content-type"] == "application/json"
    assert admin.get("/pictures/4").status_code == 200


def test_pictures_are_shown_upright_and_in_formats_of_browsers(tmp_path):
    pictures, prompts = write_project(tmp_path, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = Image.new("RGB", (30, 20))
    pixels.paste((255, 0, 0), (0, 0, 30, 4))  # the upper edge comes to the right
    pixels.save(pictures / "0.png", "JPEG", exif=exif)
    database = open_database(tmp_path / "a.sqlite", create=True)
    importing.import_pictures(database, pictures, prompts)
    admin = Browser(application.create(database), people.add(database, "A", "administrator"))
    served = admin.get("/pictures/1")
    assert served.headers["content-type"] == "image/jpeg"
    import io

    shown = Image.open(io.BytesIO(served.content))
    assert shown.size == (20, 30) and not shown.getexif().get(0x0112)
    assert shown.convert("RGB").getpixel((18, 15))[0] > 200 > shown.convert("RGB").getpixel((5, 15))[0]
    database.close()


def test_limits_of_size_and_rate(site):
    browser = site.come()
    (item,) = browser.work()
    for content in (b"x" * (MOST_BYTES + 1), iter([b"x" * 70_000] * 3)):
        headers = {**browser.form, "content-type": "application/json"}
        assert browser.client.post("/api/saves", content=content, headers=headers).status_code == 413
    for content in (b"", b"[1]", b"{", b"[" * 50_000, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"):
        headers = {**browser.form, "content-type": "application/json"}
        assert browser.client.post("/api/saves", content=content, headers=headers).status_code == 400
    rate = Rate(burst=2, per_second=1, clock=iter([0, 0, 0, 1, 1, 1]).__next__)
    assert [rate.allows(name) for name in "aaaaab"] == [True, True, False, True, False, True]
    guessing = TestClient(site.app, base_url="http://127.0.0.1:8600")
    codes = [guessing.post("/api/enter", json={"token": f"{n}.x"}).status_code for n in range(12)]
    assert codes[:10] == [401] * 10 and codes[-1] == 429
    site.app.app.state.shared.changing = Rate(burst=2, per_second=0)
    assert [browser.post("/api/saves", body(item["id"])).status_code for _ in range(3)] == [200, 200, 429]


def test_secrets_are_compared_in_constant_time(site, monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    token = people.add(site.database, "A")
    person = people.enter(site.database, token)
    people.enter(site.database, "absent.x")
    cookie = people.session_value(site.database, person)
    people.of_session(site.database, cookie)
    people.is_form_token(site.database, cookie, "x")
    people.join(site.database, "absent.x", "5")
    assert len(compared) == 5 and all(len(a) == 64 for a, _ in compared)


def test_nothing_is_fetched_unpickled_or_run_from_what_is_imported():
    """Neither a client for URLs, nor pickle, nor a shell, nor SQL made of text stands in the package."""
    forbidden = {
        "pickle",
        "marshal",
        "shelve",
        "subprocess",
        "urllib.request",
        "http.client",
        "requests",
        "httpx",
        "fsspec",
    }
    for file in PACKAGE.glob("*.py"):
        tree = ast.parse(file.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & forbidden, file.name
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            assert name not in ("eval", "exec", "loads_pickle", "literal_column")
            if name == "text" and getattr(call.func, "value", None) is not None and call.func.value.id == "sa":
                assert isinstance(call.args[0], ast.Constant)


def test_query_fields_are_no_filters(site):
    """What is asked for in the address selects nothing but a page number."""
    admin = site.come("administrator")
    plain = admin.get("/api/admin/disputed").json()
    for query in (
        "people__token_hash__startswith=a",
        "page=-1",
        "page=1e9",
        "page=0;drop table people",
        "order_by=token",
    ):
        assert admin.get(f"/api/admin/disputed?{query}").json() == plain
    text = json.dumps([admin.get(f"/api/admin/{path}").json() for path in ("overview", "disputed")])
    assert "token" not in text and "hash" not in text


def test_it_listens_on_this_machine_and_warns_elsewhere(site, capsys, monkeypatch):
    assert [serve.is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "a.b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    monkeypatch.setattr(serve.uvicorn.Server, "run", lambda self, sockets: None)
    serve.serve(site.database, port=0)
    out = capsys.readouterr()
    assert re.search(r"serving http://127.0.0.1:\d+/\nadministrator .*admin#token=\S{40,}", out.out) and not out.err
    assert site.database.setting("address").startswith("http://127.0.0.1:")
    for host, names, expected in (
        ("127.0.0.1", [], "http://h:1/"), ("127.0.0.1", ["a.b"], "https://a.b/"), ("0.0.0.0", ["a.b"], "http://a.b:1/"),
    ):  # fmt: skip
        assert serve.public_address("http://h:1/", host, names) == expected
    serve.serve(site.database, host="0.0.0.0", port=0)
    out = capsys.readouterr()
    assert "warning: 0.0.0.0 is reached from other machines and there is no TLS" in out.err and "token=" not in out.out
    with serve.listen("127.0.0.1", 0) as taken, pytest.raises(AnnotateError, match="another --port"):
        serve.listen("127.0.0.1", taken.getsockname()[1])


def test_people_of_a_platform_come_with_their_id(site):
    key = people.add_study(site.database, 1)
    browser = Browser(site.app, study=key, id="5f3a")
    assert browser.entered.status_code == 200 and browser.work()
    for join in (
        {"study": key, "id": "<script>"},
        {"study": "x", "id": "5f3a"},
        {"study": 5},
        {"study": key, "id": "6"},
    ):
        assert Browser(site.app, **join).entered.status_code == 401
