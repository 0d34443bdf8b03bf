"""Runs the application in this process until it is interrupted."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import uvicorn

from rahf.annotate import application, people
from rahf.annotate.database import Database
from rahf.annotate.tables import people as people_table
from rahf.core import terminal
from rahf.core.errors import AnnotateError


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
      AnnotateError: the address is in use or not of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise AnnotateError(f"cannot listen on {host}, port {port}: {error}; give another --port or --host") from error


def public_address(address: str, host: str, host_names: Sequence[str]) -> str:
    """The address that people get in their links; `rahf annotate people` prints it.

    Args:
      address: that the server listens on, with a slash at its end.
      host: of that address.
      host_names: names by which browsers call the server. A server of this machine alone that has a name stands behind
        a proxy with TLS.
    """
    if not host_names:
        return address
    if is_local(host):
        return f"https://{host_names[0]}/"
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{host_names[0]}:{rest.rstrip('/').rsplit(':', 1)[1]}/"


def first_administrator(database: Database) -> str | None:
    """The token of a new administrator, where there is nobody yet; else None."""
    with database.read() as connection:
        anybody = connection.scalar(sa.select(people_table.c.id).limit(1))
    return people.add(database, "first administrator", "administrator") if anybody is None else None


def serve(
    database: Database,
    host: str = "127.0.0.1",
    port: int = 8600,
    host_names: Sequence[str] = (),
    tls: tuple[str, str] | None = None,
    started: Callable[[uvicorn.Server, str], None] | None = None,
) -> None:
    """Serves a project. Prints the address, and once the link of the first administrator.

    Args:
      database: of the project.
      host, port: to listen on.
      host_names: names by which browsers may call the server, beside numbers and ``localhost``.
      tls: files of certificate and key.
      started: called with the server and its address before it begins.

    Raises:
      AnnotateError: no pictures, or the address cannot be used.
    """
    app = application.create(database, host_names)
    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"{'https' if tls else 'http'}://{shown}:{listening.getsockname()[1]}/"
    if not is_local(host) and tls is None:
        terminal.say(
            f"warning: {host} is reached from other machines and there is no TLS: tokens and answers can be read on "
            "the way. Give --tls-certificate and --tls-key, or stay on 127.0.0.1 behind a proxy with TLS",
            stderr=True,
        )
    database.set("address", public_address(address, host, host_names))
    token = first_administrator(database)
    terminal.say(f"serving {address}")
    if token is not None:
        terminal.say(f"administrator (this link is shown once, keep it): {address}admin#token={token}")
    sys.stdout.flush()
    options = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        **options,
    )
    server = uvicorn.Server(config)
    if started is not None:
        started(server, address)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
