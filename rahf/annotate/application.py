"""The HTTP interface. A change needs a session cookie and the page's form token; annotators reach only their own."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
import time
from collections.abc import Collection
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from data_pipelines.feedback.folder import Folder
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import storable
from rahf import images
from rahf.annotate import assignments, people, premarks, quality, saving, views
from rahf.annotate.database import Database
from rahf.annotate.guards import Guards, Rate
from rahf.annotate.people import Person
from rahf.annotate.tables import pictures
from rahf.core import json_text
from rahf.core.errors import AnnotateError

_PAGE = pathlib.Path(__file__).parent / "page"
#: Path → file of the package and its type. Nothing else is served from the disk but pictures, by their number.
_FILES = {
    "/": ("annotate.html", "text/html; charset=utf-8"),
    "/admin": ("admin.html", "text/html; charset=utf-8"),
    "/annotate.js": ("annotate.js", "text/javascript; charset=utf-8"),
    "/admin.js": ("admin.js", "text/javascript; charset=utf-8"),
    "/offline.js": ("offline.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_COOKIE = "rahf_session"
_PICTURE_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_REMEMBERED = 5.0  # seconds
_MARGIN = 0.5  # seconds before the end of that in which a person is asked for again
_MOST_SESSIONS = 10_000


class _Stop(Exception):
    """Ends a request with a status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _State:
    """What requests share."""

    def __init__(self, database: Database):
        self.database = database
        self.folder = Folder(database.folder)
        self.entering = Rate(burst=10, per_second=0.2)  # failed attempts of an address
        self.changing = Rate(burst=120, per_second=20)  # changes of a person
        self.looking = Rate(burst=300, per_second=50)  # pictures and lists of a person
        self._sessions: dict[str, tuple[float, Person]] = {}

    def person_of(self, cookie: str) -> Person | None:
        """The person of a cookie, remembered for five seconds: somebody kept out by another process stays that long."""
        now = time.monotonic()
        since, person = self._sessions.get(cookie, (-_REMEMBERED, None))
        if person is not None and now - since < _REMEMBERED:
            return person
        person = people.of_session(self.database, cookie)
        if len(self._sessions) > _MOST_SESSIONS:
            self._sessions = {}
        if person is not None:
            self._sessions[cookie] = (now, person)
        return person

    async def remember(self, cookie: str) -> None:
        """Asks the database for the person of a cookie where need be, in another thread."""
        since, _ = self._sessions.get(cookie, (-_REMEMBERED, None))
        if cookie and time.monotonic() - since >= _REMEMBERED - _MARGIN:
            self._sessions.pop(cookie, None)
            await run_in_threadpool(self.person_of, cookie)

    def forget_sessions(self) -> None:
        """Asks the database again for everybody."""
        self._sessions = {}


def create(database: Database, host_names: Collection[str] = ()) -> Guards:
    """The ASGI application of a project.

    Args:
      database: of the project, with its pictures imported.
      host_names: names by which browsers may call the server, beside ``localhost`` and numbers.

    Raises:
      AnnotateError: there are no pictures.
    """
    app = FastAPI(title="rahf annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.shared = _State(database)
    app.include_router(_router)
    app.add_exception_handler(_Stop, lambda _, error: _json({"error": str(error)}, error.status))
    app.add_exception_handler(saving.NotTheirs, lambda _, error: _json({"error": str(error)}, 404))
    app.add_exception_handler(AnnotateError, lambda _, error: _json({"error": str(error)}, 400))
    return Guards(app, host_names)


def _json(tree: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(tree, status)


async def _async_shared(request: Request) -> _State:
    return request.app.state.shared


def _shared(request: Request) -> _State:
    return request.app.state.shared


def _visitor(request: Request) -> Person:
    """The person of the cookie."""
    shared = _shared(request)
    cookie = request.cookies.get(_COOKIE, "")
    person = shared.person_of(cookie) if cookie else None
    if person is None:
        raise _Stop(401, "come in with your link first")
    if not shared.looking.allows(person.id):
        raise _Stop(429, "too many requests; wait a moment")
    return person


def _changer(request: Request) -> Person:
    """The person of the cookie, with the form token that only our own page has."""
    person = _visitor(request)
    shared = _shared(request)
    token = request.headers.get("x-form-token", "")
    if not people.is_form_token(shared.database, request.cookies.get(_COOKIE, ""), token):
        raise _Stop(403, "the form token is missing or wrong; load the page again")
    if not shared.changing.allows(person.id):
        raise _Stop(429, "too many changes; wait a moment")
    return person


def _administrator(person: Person) -> Person:
    # As if the address did not exist: an annotator learns nothing of it.
    if not person.administrator:
        raise _Stop(404, "there is no such page")
    return person


def _looking_administrator(request: Request) -> Person:
    return _administrator(_visitor(request))


def _changing_administrator(request: Request) -> Person:
    return _administrator(_changer(request))


async def _object(request: Request) -> dict[str, Any]:
    """The JSON object that was sent."""
    try:
        return json_text.parse_object(await request.body())
    except ValueError as error:
        raise _Stop(400, f"not a JSON object: {error}") from error


Shared = Annotated[_State, Depends(_async_shared)]
Visitor = Annotated[Person, Depends(_visitor)]
Changer = Annotated[Person, Depends(_changer)]
Looking = Annotated[Person, Depends(_looking_administrator)]
Changing = Annotated[Person, Depends(_changing_administrator)]
Sent = Annotated[dict[str, Any], Depends(_object)]

_router = APIRouter()


def _file(request: Request) -> Response:
    name, kind = _FILES[request.url.path]
    # The browser may keep a file, but asks each time whether it has changed.
    return Response((_PAGE / name).read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})


for _path in _FILES:
    _router.add_api_route(_path, _file, methods=["GET"], include_in_schema=False)


def _come_in(request: Request, shared: _State, person: Person | None, what: str) -> Response:
    if person is None:
        raise _Stop(401, f"this {what} is not valid")
    value = people.session_value(shared.database, person)
    response = _json(views.me(shared.database, person, value))
    secure = request.url.scheme == "https"
    response.set_cookie(_COOKIE, value, max_age=14 * 24 * 3600, httponly=True, samesite="strict", secure=secure)
    return response


def _limit_entering(request: Request, shared: _State, cost: float) -> None:
    address = request.client.host if request.client else ""
    if not shared.entering.allows(address, cost):
        raise _Stop(429, "too many attempts; wait a minute")


@_router.post("/api/enter")
def _enter(request: Request, shared: Shared, sent: Sent) -> Response:
    _limit_entering(request, shared, 0)
    token = sent.get("token")
    person = people.enter(shared.database, token) if isinstance(token, str) and len(token) < 200 else None
    if person is None:
        _limit_entering(request, shared, 1)
    return _come_in(request, shared, person, "link")


@_router.post("/api/join")
def _join(request: Request, shared: Shared, sent: Sent) -> Response:
    _limit_entering(request, shared, 0)
    study, platform_id = sent.get("study"), sent.get("id")
    good = isinstance(study, str) and isinstance(platform_id, str) and len(study) < 200
    person = people.join(shared.database, study, platform_id) if good else None
    if person is None:
        _limit_entering(request, shared, 1)
    return _come_in(request, shared, person, "link")


@_router.post("/api/leave")
def _leave(person: Changer) -> Response:
    response = _json({})
    response.delete_cookie(_COOKIE, httponly=True, samesite="strict")
    return response


@_router.get("/api/me")
def _me(request: Request, shared: Shared, person: Visitor) -> Response:
    return _json(views.me(shared.database, person, request.cookies[_COOKIE]))


@_router.post("/api/work")
def _work(shared: Shared, person: Changer) -> Response:
    numbers = assignments.hold(shared.database, person.id)
    progress = views.progress(shared.database, person)
    tree = {"items": views.items(shared.database, person, numbers), "progress": progress}
    if not numbers and progress["answered"]:
        tree["completion_code"] = person.completion_code
    return _json(tree)


@_router.get("/api/history")
def _history(shared: Shared, person: Visitor) -> Response:
    return _json(views.history(shared.database, person))


@_router.get("/api/items/{number}")
def _item(shared: Shared, person: Visitor, number: str) -> Response:
    return _json(views.items(shared.database, person, [_number(number)])[0])


async def _save(request: Request) -> Response:
    # Fifty people may save at once. So there is no thread for each of them, and no dependency that takes one: one
    # thread writes, and this one parses and waits.
    await _shared(request).remember(request.cookies.get(_COOKIE, ""))
    person, database = _changer(request), _shared(request).database
    sent = await _object(request)
    receipt = await asyncio.wrap_future(saving.save_later(database, person.id, sent))
    tree = receipt._asdict()
    if receipt.training and sent["complete"]:
        (item,) = await run_in_threadpool(views.items, database, person, [sent["picture"]])
        tree["feedback"] = item.get("feedback")
    return _json(tree)


_router.add_route("/api/saves", _save, methods=["POST"])  # without FastAPI's own work for dependencies


@_router.post("/api/premarks")
def _premarks(shared: Shared, person: Changer, sent: Sent) -> Response:
    number = sent.get("picture")
    shown = premarks.show(shared.database, person.id, number if type(number) is int else -1)
    return _json({"premarks": None if shown is None else shown.to_json()})


@_router.get("/pictures/{number}")
def _picture(shared: Shared, person: Visitor, number: str) -> Response:
    with shared.database.read() as connection:
        picture_id = _number(number)
        if not person.administrator and not assignments.is_theirs(connection, picture_id, person.id):
            raise _Stop(404, "there is no such picture")
        row = connection.execute(sa.select(pictures).where(pictures.c.id == picture_id)).first()
    if row is None:
        raise _Stop(404, "there is no such picture")
    data, kind = _readable_picture(shared.folder, row.name, row.digest)
    # Nobody else's browser may keep it, and its own may for an hour.
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})


def _readable_picture(folder: Folder, name: str, digest: str) -> tuple[bytes, str]:
    """The bytes of a picture as browsers show them upright, and their type."""
    try:
        data = folder.read(name, "image")
        if hashlib.sha256(data).hexdigest() != digest:
            raise _Stop(410, "the file of this picture has changed since it was imported")
        if not images.is_upright_rgb(data):
            data = storable(data)
        kind = _PICTURE_TYPES.get(images.check_header(data).format)
    except (Refused, images.ImageError) as error:
        raise _Stop(410, "the file of this picture cannot be read any more") from error
    if kind is None:
        raise _Stop(410, "the file of this picture has a format that browsers do not show")
    return data, kind


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise _Stop(404, "there is no such picture")
    return int(text)


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0


@_router.get("/api/admin/overview")
def _overview(shared: Shared, person: Looking) -> Response:
    return _json(quality.overview(shared.database))


@_router.get("/api/admin/people/{pseudonym}")
def _person(shared: Shared, person: Looking, pseudonym: str) -> Response:
    return _json(quality.person(shared.database, pseudonym))


@_router.get("/api/admin/agreement")
def _agreement(shared: Shared, person: Looking) -> Response:
    return _json(quality.measured_agreement(shared.database))


@_router.get("/api/admin/disputed")
def _disputed(request: Request, shared: Shared, person: Looking) -> Response:
    return _json(quality.disputed(shared.database, _page_number(request)))


@_router.get("/api/admin/set-aside")
def _set_aside(request: Request, shared: Shared, person: Looking) -> Response:
    return _json(quality.set_aside(shared.database, _page_number(request)))


@_router.get("/api/admin/pictures/{number}")
def _judged_picture(shared: Shared, person: Looking, number: str) -> Response:
    return _json(quality.picture(shared.database, _number(number)))


@_router.post("/api/admin/decisions")
def _decide(shared: Shared, person: Changing, sent: Sent) -> Response:
    quality.adjudicate(shared.database, person.id, sent.get("picture"), sent.get("answer"))
    return _json({})


@_router.post("/api/admin/people")
def _add_person(shared: Shared, person: Changing, sent: Sent) -> Response:
    label, role = sent.get("label"), sent.get("role", "annotator")
    if not isinstance(label, str) or not isinstance(role, str):
        raise _Stop(400, "label and role: expected text")
    return _json({"token": people.add(shared.database, label, role)})


@_router.post("/api/admin/renew")
def _renew(shared: Shared, person: Changing, sent: Sent) -> Response:
    token = people.renew(shared.database, str(sent.get("pseudonym")))
    shared.forget_sessions()
    return _json({"token": token})


@_router.post("/api/admin/deactivate")
def _deactivate(shared: Shared, person: Changing, sent: Sent) -> Response:
    pseudonym = str(sent.get("pseudonym"))
    if pseudonym == person.pseudonym:
        raise _Stop(400, "you cannot keep yourself out")
    people.deactivate(shared.database, pseudonym)
    shared.forget_sessions()
    return _json({})
