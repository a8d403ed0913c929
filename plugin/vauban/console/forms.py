"""What a browser sends: small forms and small queries, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request

from vauban.errors import MalformedRequest, RequestError, RequestTimeout, RequestTooLarge

MAX_FORM_BYTES: Final = 32 * 1024
MAX_FIELDS: Final = 12
MAX_FIELD_CHARS: Final = 300
FORM_S: Final = 10.0
_FORM: Final = "application/x-www-form-urlencoded"


class Form(dict[str, str]):
    """Fields by name; one that was not sent is empty."""

    def __missing__(self, name: str) -> str:
        return ""


async def read_form(request: Request) -> Form:
    """:raises RequestError: too large, too slow, not a form, or a field twice."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise MalformedRequest("this is not a form")
    raw = bytearray()
    try:
        async with asyncio.timeout(FORM_S):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_FORM_BYTES:
                    raise RequestTooLarge(f"a form is at most {MAX_FORM_BYTES} bytes")
    except TimeoutError:
        raise RequestTimeout("the form did not arrive in time") from None
    except ClientDisconnect:
        raise MalformedRequest("the form did not arrive") from None
    return _fields(bytes(raw))


def read_query(request: Request, *names: str) -> Mapping[str, str]:
    """The fields of these names in the address; one that is not there is empty, others are left.

    :raises RequestError: they are too many or too long.
    """
    fields = _fields(request.scope.get("query_string", b""))
    if any(len(fields[name]) > MAX_FIELD_CHARS for name in names):
        raise RequestError("too long")
    return {name: fields[name].strip() for name in names}


def _fields(raw: bytes) -> Form:
    try:
        found = parse_qs(
            raw.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS,
            errors="strict",
        )  # fmt: skip
    except ValueError:
        raise MalformedRequest("these are not fields of a form") from None
    if any(len(values) > 1 for values in found.values()):
        raise MalformedRequest("a field was sent twice")
    return Form({name: values[0] for name, values in found.items()})
