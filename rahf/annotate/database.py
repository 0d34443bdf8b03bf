"""Opens the database: SQLite in a file, or PostgreSQL. One write at a time; a write is on disk when it returns."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from rahf.annotate import tables
from rahf.core.errors import AnnotateError
from rahf.core.names import one_line

_VERSION = 1
_BUSY_SECONDS = 30
_LOCK_OF_POSTGRESQL = 7_243_001  # any number that nobody else uses for an advisory lock of this database
#: In which pictures are given to people.
ORDERS = ("random", "uncertainty")
_SQLITE_START = b"SQLite format 3\0"


@dataclasses.dataclass(frozen=True)
class Project:
    """The rules of a project.

    Attributes:
      title: shown on the page.
      people_per_picture: number of different people who answer each picture.
      lease_seconds: after that a picture that was not answered goes to somebody else.
      ahead: pictures that a person holds at once, so that work goes on without a network.
      gold_every: after how many pictures a hidden gold picture follows; 0: never.
      training: how many training pictures a person must do first, of those that there are.
      most_pictures: after that many answers a person is finished and gets the completion code; 0: no limit.
      order: "random": the pictures that the fewest people have taken first; "uncertainty": those of which a critic is
        least sure first, each until as many people have it as wanted (`rahf.annotate.premarks`).
    """

    title: str = "Rich feedback"
    people_per_picture: int = 3
    lease_seconds: float = 3600.0
    ahead: int = 4
    gold_every: int = 10
    training: int = 3
    most_pictures: int = 0
    order: str = "random"

    def check(self) -> None:
        """Raises AnnotateError for a rule that cannot be followed."""
        bounds = {
            "people_per_picture": (1, 100),
            "lease_seconds": (10, 10**7),
            "ahead": (1, 50),
            "gold_every": (0, 10**6),
            "training": (0, 1000),
            "most_pictures": (0, 10**9),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise AnnotateError(f"{option} is {value}, expected {low} to {high}")
        if self.order not in ORDERS:
            raise AnnotateError(f"--order is {self.order!r:.40}, expected {' or '.join(ORDERS)}")


_Result = TypeVar("_Result")


class _Job:
    """A change that waits to be made, and the future of who waits for it."""

    def __init__(self, change: Callable[[Connection], Any]):
        self.change = change
        self.future: concurrent.futures.Future = concurrent.futures.Future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.waited_for = True

    def begin(self) -> _Job:
        """Says that the change is being made. It is made even for somebody who does not wait any more."""
        self.waited_for = self.future.set_running_or_notify_cancel()
        return self

    def tell(self) -> None:
        """Hands out what the change has returned or raised."""
        if not self.waited_for:
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Database:
    """A database of one project.

    Attributes:
      engine: SQLAlchemy's.
      clock: gives the time in seconds since 1970; tests replace it.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock
        self._lock = threading.Lock()  # fair among the threads of this process, where waiting on SQLite's own is not
        self._jobs: collections.deque[_Job] = collections.deque()  # its methods are atomic
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "rahf-writer")
        self.secret = bytes.fromhex(self.setting("secret"))

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the data."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection that may change data; nobody else writes meanwhile. On disk when the block has ended."""
        with self._lock, self._writing() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(rahf_write=True) as connection, connection.begin():
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_OF_POSTGRESQL})
            yield connection

    def together(self, change: Callable[[Connection], _Result]) -> _Result:
        """Makes a change in one transaction with those that wait beside it; on disk when this returns.

        See `together_later`. Must not be called within `write`.
        """
        return self.together_later(change).result()

    def together_later(self, change: Callable[[Connection], _Result]) -> concurrent.futures.Future[_Result]:
        """Makes a change in one transaction with those that wait beside it; on disk when the future is done.

        Bringing a transaction to the disk takes longer than a save itself, and many threads that wait for one lock take
        turns at the processor. So one thread makes all changes: while it brings some to the disk, the next ones gather.
        An AnnotateError concerns its own change only, and must be raised before the change writes anything; after any
        other error each change gets a transaction of its own.

        Args:
          change: gets the connection; called in another thread. What it raises is raised by the future.
        """
        job = _Job(change)
        self._jobs.append(job)
        self._writer.submit(self._make_waiting)
        return job.future

    def _make_waiting(self) -> None:
        """Makes the changes that wait by now."""
        jobs = []
        with self._lock:
            while self._jobs:
                jobs.append(self._jobs.popleft().begin())
            self._make(jobs)
        for job in jobs:
            job.tell()

    def _make(self, jobs: list[_Job]) -> None:
        """Makes changes in one transaction; or, where that fails, each in its own."""
        if not jobs:
            return
        try:
            with self._writing() as connection:
                for job in jobs:
                    try:
                        job.result = job.change(connection)
                    except AnnotateError as error:
                        job.error = error
        except BaseException as error:
            for job in jobs:
                job.error = error
            if len(jobs) > 1 and isinstance(error, Exception):
                for job in jobs:
                    job.error = None
                    self._make([job])

    def setting(self, name: str) -> str | None:
        """A stored value."""
        with self.read() as connection:
            return connection.scalar(sa.select(tables.settings.c.value).where(tables.settings.c.name == name))

    def set(self, name: str, value: str) -> None:
        """Stores a value under a name."""
        with self.write() as connection:
            put_setting(connection, name, value)

    @property
    def project(self) -> Project:
        """The rules, as stored."""
        stored = json.loads(self.setting("project") or "{}")
        names = {field.name for field in dataclasses.fields(Project)}
        return Project(**{name: value for name, value in stored.items() if name in names})

    def set_project(self, **changes: Any) -> Project:
        """Changes rules and returns all of them. Raises AnnotateError for a rule that cannot be followed."""
        project = dataclasses.replace(self.project, **changes)
        project.check()
        with self.write() as connection:
            put_setting(connection, "project", json.dumps(dataclasses.asdict(project)))
            if "people_per_picture" in changes:
                work = tables.pictures.c.purpose == "work"
                connection.execute(sa.update(tables.pictures).where(work).values(wanted=project.people_per_picture))
        return project

    @property
    def folder(self) -> str:
        """The folder of pictures. Raises AnnotateError: none was imported."""
        folder = self.setting("folder")
        if folder is None:
            raise AnnotateError("the database holds no pictures yet; start with --images DIR --prompts FILE")
        return folder

    def close(self) -> None:
        """Makes the changes that wait, and closes all connections."""
        self._writer.shutdown()
        self.engine.dispose()


def put_setting(connection: Connection, name: str, value: str) -> None:
    """Stores a value under a name, within a write."""
    changed = connection.execute(sa.update(tables.settings).where(tables.settings.c.name == name).values(value=value))
    if not changed.rowcount:
        connection.execute(sa.insert(tables.settings).values(name=name, value=value))


def open_database(place: str | os.PathLike, create: bool = False, clock: Callable[[], float] = time.time) -> Database:
    """Opens a database, or makes one.

    A new database gets a random secret key. There are no people in it.

    Args:
      place: path of an SQLite file, or ``postgresql://…``.
      create: make it where it is not there.
      clock: gives the time in seconds since 1970.

    Raises:
      AnnotateError: no such database, another kind of file, tables of another version, or a missing driver.
    """
    text = os.fspath(place)
    engine = _postgresql(text) if text.startswith("postgres") and "://" in text else _sqlite(text, create)
    try:
        _check_tables(engine, one_line(text, 200) if "://" not in text else "the database", create)
        return Database(engine, clock)
    except BaseException:
        engine.dispose()
        raise


def _postgresql(url: str) -> Engine:
    address = "postgresql+psycopg://" + url.split("://", 1)[1]
    try:
        return sa.create_engine(address, pool_size=16, max_overflow=16, pool_pre_ping=True)
    except ImportError as error:
        raise AnnotateError(f"--db postgresql://… needs a driver ({error}): pip install 'psycopg[binary]'") from error


def _sqlite(path: str, create: bool) -> Engine:
    file = pathlib.Path(path)
    if "://" in path:
        raise AnnotateError(f"--db {path.split('://')[0]}://…: expected the path of an SQLite file, or postgresql://…")
    if file.exists() and not file.is_file():
        raise AnnotateError(f"--db {path} is no regular file; expected an SQLite file")
    if not file.exists() and not create:
        raise AnnotateError(
            f"--db {path} does not exist; `rahf annotate --images DIR --prompts FILE --db {path}` makes it"
        )
    if file.exists() and file.stat().st_size:
        with open(file, "rb") as opened:
            if opened.read(len(_SQLITE_START)) != _SQLITE_START:
                raise AnnotateError(f"--db {path} is not an SQLite database; give another path")
    elif not file.parent.is_dir():
        raise AnnotateError(f"--db {path}: there is no folder {file.parent}")
    else:
        # It holds the secret key and what people have answered: only its owner may read it.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=os.path.abspath(path)),
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        pool_size=16,
        max_overflow=32,
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {setting}").close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("rahf_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _check_tables(engine: Engine, what: str, create: bool) -> None:
    """Makes the tables in an empty database; raises AnnotateError where others are."""
    try:
        names = set(sa.inspect(engine).get_table_names())
        if not names and create:
            with engine.connect().execution_options(rahf_write=True) as connection, connection.begin():
                tables.metadata.create_all(connection)
                if connection.scalar(sa.select(sa.func.count()).select_from(tables.settings)) == 0:
                    put_setting(connection, "version", str(_VERSION))
                    put_setting(connection, "secret", secrets.token_hex(32))
            return
        later = {table.name for table in tables.ADDED_LATER}
        if not set(tables.metadata.tables) - later <= names:
            raise AnnotateError(f"{what} is not a database of `rahf annotate`; give another one")
        with engine.connect() as connection:
            version = connection.scalar(sa.select(tables.settings.c.value).where(tables.settings.c.name == "version"))
        if version == str(_VERSION) and not later <= names:
            _add_tables(engine)
    except sa.exc.DBAPIError as error:
        raise AnnotateError(f"{what} cannot be opened: {one_line(error.orig, 200)}") from error
    if version != str(_VERSION):
        raise AnnotateError(f"{what} was made by another version of rahf (tables {version}, this one has {_VERSION})")


def _add_tables(engine: Engine) -> None:
    """Adds to the database of an earlier rahf the tables and indexes that it does not have."""
    with engine.connect().execution_options(rahf_write=True) as connection, connection.begin():
        tables.metadata.create_all(connection)
        for index in tables.pictures.indexes:
            index.create(connection, checkfirst=True)
