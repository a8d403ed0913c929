"""The guarded server, as one operator sees it: its own routes, asked with that operator's key."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from urllib.parse import quote

import httpx

from vauban.errors import VaubanError

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MAX_CONNECTIONS: Final = 32


class ServerDown(VaubanError):
    """No answer, or none that a guarded server gives; says which."""


class ServerRefused(VaubanError):
    """The server refused. `status` and `code` are the server's, the message is its words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class GuardedServer:
    """
    :param url: without a path. :param local: it is on this machine, so no proxy leads there.
    :param timeout_ms: for a whole answer.
    """

    def __init__(self, url: str, *, local: bool, timeout_ms: int) -> None:
        self.url = url
        self._timeout_s = timeout_ms / 1000
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=self._timeout_s,
            trust_env=not local,
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, key: str, *path: str, **query: str) -> dict[str, Any]:
        """:raises ServerDown: :raises ServerRefused:

        :param path: parts under `/vauban/`; each is quoted whole, so none can lead elsewhere.
        """
        return await self._ask("GET", key, path, query, None)

    async def who(self, key: str) -> tuple[str, frozenset[str]]:
        """The principal and the scopes of a key.

        :raises ServerDown: :raises ServerRefused:
        """
        match await self.get(key, "me"):
            case {"id": str(principal), "scopes": list(scopes)}:
                return principal, frozenset(map(str, scopes))
        raise ServerDown("it answers, and not as a guarded server does")

    async def post(self, key: str, *path: str, **body: Any) -> dict[str, Any]:
        """:raises ServerDown: it may have been done. :raises ServerRefused: it was not."""
        return await self._ask("POST", key, path, None, body)

    async def _ask(
        self, method: str, key: str, path: tuple[str, ...], query: Any, body: Any
    ) -> dict[str, Any]:
        where = "/vauban/" + "/".join(quote(part, safe="") for part in path)
        headers = {"authorization": f"Bearer {key}"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    method, where, params=query, json=body, headers=headers
                ) as response,
            ):
                raw = await _bounded(response)
        except TimeoutError:
            raise ServerDown("no answer in time") from None
        except httpx.HTTPError as error:
            raise ServerDown(type(error).__name__) from None
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        raise _refused(response.status_code, answer)


def _refused(status: int, answer: Any) -> VaubanError:
    told = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(told, dict):
        return ServerDown(f"it answers {status}, and not as a guarded server does")
    return ServerRefused(status, str(told.get("code", "")), str(told.get("message", "")))


async def _bounded(response: httpx.Response) -> bytes:
    raw = bytearray()
    async for chunk in response.aiter_bytes():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise ServerDown("the answer is too large")
    return bytes(raw)
