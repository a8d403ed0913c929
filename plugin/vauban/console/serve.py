"""Runs the console on uvicorn, with a limit on how long a client may take to say what it wants."""

from __future__ import annotations

import asyncio
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S: Final = 10.0
_MAX_HEAD_BYTES: Final = 32 * 1024
_MAX_CONNECTIONS: Final = 256
_KEEP_ALIVE_S: Final = 15
_STOP_S: Final = 5


class TimedHead(H11Protocol):
    """Closes a connection whose request's head is not there in time; uvicorn would wait forever,
    and each such connection is one of those that may be open."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits_for_head():
            self._forget_due()
        elif self._due is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_due()
        super().connection_lost(exc)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._due = self.loop.call_later(HEAD_S, self._late)

    def _forget_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if self._waits_for_head():
            self.transport.close()


def server(
    app: ASGIApp, host: str, port: int, *, tls_cert: str | None = None, tls_key: str | None = None
) -> uvicorn.Server:
    """A server that is not running yet. No line of it names what was asked for."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=TimedHead,
            ws="none",
            access_log=False,
            log_level="warning",
            proxy_headers=False,  # whoever says so is no other address
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_S,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
        )
    )
