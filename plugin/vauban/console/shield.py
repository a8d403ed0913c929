"""What every request to the console passes before anything of it is used, and what every answer
carries.

- A name in `Host` that is not the console's own: a page of another name that resolves to this
  address (DNS rebinding) gets nothing.
- A POST that does not come from a page of the console's own.
- The headers that let a browser run and load the console's own files only.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vauban.access.identity import is_loopback
from vauban.errors import ConfigError

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types console",
    )
)
_HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Not `no-referrer`: browsers then send `Origin: null` with the console's own forms.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_HSTS: Final = "max-age=31536000"
_METHODS: Final = frozenset({"GET", "HEAD", "POST"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where browsers find the console. `origins`: scheme://host[:port], as browsers write it."""

    origins: frozenset[str]
    encrypted: bool

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(origin.partition("://")[2] for origin in self.origins)

    @classmethod
    def at(cls, host: str, port: int, *, tls: bool = False, public_url: str = "") -> Place:
        """:raises ConfigError: strangers could listen in, or nobody knows the console's name."""
        own = f"{'https' if tls else 'http'}://"
        names = {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
        origins = {own + name for name in names}
        if public_url:
            public = _origin(public_url)
            if not (public.startswith("https://") or is_loopback(urlsplit(public).hostname)):
                raise ConfigError("--public-url must be https://, or on loopback")
            return cls(frozenset({public} | origins), public.startswith("https://"))
        if not is_loopback(host):
            raise ConfigError(
                f"the console would listen on {host}: give --public-url https://NAME, with"
                " --tls-cert and --tls-key or a TLS proxy in front of it"
            )
        return cls(frozenset(origins), tls)


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ConfigError("--public-url takes https://NAME or https://NAME:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")


class Shield:
    """Wraps the whole application, its error pages included."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self._app = app
        self._place = place
        self._headers = dict(_HEADERS)
        if place.encrypted:
            self._headers["strict-transport-security"] = _HSTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                headers.update(self._headers)
                message = {**message, "headers": headers.raw}
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, sending)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._place.hosts:
            return PlainTextResponse("This is not a name of the console.", 421)
        if method not in _METHODS:
            return PlainTextResponse("Not a method of the console.", 405)
        if method == "POST" and not self._is_own(headers):
            return PlainTextResponse("This form is not the console's own.", 403)
        return None

    def _is_own(self, headers: Headers) -> bool:
        """Every browser says where a POST comes from, by one of the two or both."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin not in self._place.origins:
            return False
        return site == "same-origin" if site is not None else origin is not None
