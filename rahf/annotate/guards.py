"""What every request passes: allowed names of the host, limits of size and rate, and headers of every response."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

#: Longest body of a request in bytes. An answer with 200 marks of each kind and 2,000 words has fewer than 20,000.
MOST_BYTES = 128 * 1024
_KEPT_KEYS = 20_000
#: Scripts and styles come from this server only, none stand in the page, nothing may frame it or be posted elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Rate:
    """A bucket for each key: `burst` requests at once, `per_second` in the long run."""

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic):
        self.burst, self.per_second, self.clock = burst, per_second, clock
        self._buckets: OrderedDict[Any, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, key: Any, cost: float = 1.0) -> bool:
        """Whether one more request of this key is allowed; counts it if so. Cost 0 only asks."""
        with self._lock:
            now = self.clock()
            left, then = self._buckets.pop(key, (self.burst, now))
            left = min(self.burst, left + (now - then) * self.per_second)
            allowed = left >= max(cost, 1.0)
            self._buckets[key] = (left - cost if allowed else left, now)
            if len(self._buckets) > _KEPT_KEYS:
                self._buckets.popitem(last=False)
            return allowed


class Guards:
    """ASGI middleware. Refuses before the application sees a request."""

    def __init__(self, app: Any, host_names: Collection[str] = ()):
        self.app = app
        self.host_names = {"localhost", *(name.lower() for name in host_names)}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        secured = _with_headers(send, scope.get("scheme") == "https")
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(secured, *refusal)
            return
        body = await _body(receive)
        if body is None:
            await _refuse(secured, 413, f"the request is longer than {MOST_BYTES} bytes")
            return
        sent = False

        async def once() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, once, secured)

    def _refusal(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        if not self.knows(headers.get("host", "")):
            return 421, "this name of the host is not known here; start with --host-name NAME"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            return 413, f"the request is longer than {MOST_BYTES} bytes"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "only GET and POST"
        # A page of another site can send forms and plain text here with the visitor's cookie, but no JSON.
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "expected the content type application/json"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "the request comes from another site"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "the request comes from another site"
        return None

    def knows(self, host: str) -> bool:
        """Whether the server may be called so. A site can point its own name here (DNS rebinding), but no number."""
        name = (urlsplit(f"//{host}").hostname or "") if host.isascii() and host.isprintable() else ""
        if name in self.host_names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def _body(receive: Any) -> bytes | None:
    """The whole body; None: it is too long."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _with_headers(send: Any, secure: bool) -> Any:
    extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
    if secure:
        extra.append((b"strict-transport-security", b"max-age=31536000"))

    async def wrapped(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message["headers"]}
            added = [(name, value) for name, value in extra if name not in present]
            if b"cache-control" not in present:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return wrapped


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
