"""Answers to requests with a `Range` header: all of a content, the one range that is asked for, or that there is none such."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import Headers

from ..corpus.session import NotServed

_PIECE = 1 << 18  # bytes of a file sent at a time


class NoSuchRange(Exception):
    """The range asked for begins behind the end of the content, or is empty."""


def asked_range(headers: Headers, size: int) -> tuple[int, int] | None:
    """The first byte that a request asks for and the one behind the last; None where it is to get the whole content.

    That is so of several ranges, of other units than bytes, and of what is no range at all, as RFC 9110 allows. It is so of
    `If-Range` too: no answer carries a mark that a client could have kept.

    Args:
        size: bytes of the content.

    Raises:
        NoSuchRange: nothing of the content lies in the range.
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*([0-9]*)\s*-\s*([0-9]*)\s*", headers.get("range", ""), re.IGNORECASE)
    if found is None or not (found[1] or found[2]) or "if-range" in headers:
        return None
    if not found[1]:
        first, stop = size - _number(found[2], size), size
    else:
        first, stop = _number(found[1], size), size
        if found[2]:
            if _is_less(found[2], found[1]):
                return None
            stop = min(size, _number(found[2], size) + 1)
    if first >= stop:
        raise NoSuchRange
    return first, stop


def _number(digits: str, most: int) -> int:
    """A decimal number, or `most` if it is larger. Python reads no number of more than 4300 digits."""
    digits = digits.lstrip("0") or "0"
    return most if len(digits) > len(str(most)) else min(most, int(digits))


def _is_less(one: str, other: str) -> bool:
    one, other = one.lstrip("0"), other.lstrip("0")
    return (len(one), one) < (len(other), other)


def send_bytes(content: bytes, asked: Headers, media_type: str) -> Response:
    """What a request asks for of a content that is in memory."""
    try:
        status, first, stop, headers = _answer(asked, len(content))
    except NoSuchRange:
        return _none_such(len(content))
    return Response(content[first:stop], status, headers, media_type)


def send_file(path: Path, asked: Headers, media_type: str) -> Response:
    """What a request asks for of a file, read as it is sent. Raises NotServed if the file cannot be read."""
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise NotServed(f"{path.name}: cannot be read ({error.strerror}).", gone=isinstance(error, FileNotFoundError)) from None
    try:
        status, first, stop, headers = _answer(asked, size)
    except NoSuchRange:
        return _none_such(size)
    # Without a length, the answer would be sent in chunks, and browsers would not know how long the sound is.
    return StreamingResponse(_pieces(path, first, stop), status, headers | {"Content-Length": str(stop - first)}, media_type)


def _answer(asked: Headers, size: int) -> tuple[int, int, int, dict[str, str]]:
    """Status, first byte, the one behind the last, and headers. Raises NoSuchRange."""
    headers = {"Accept-Ranges": "bytes"}
    found = asked_range(asked, size)
    if found is None:
        return 200, 0, size, headers
    first, stop = found
    return 206, first, stop, headers | {"Content-Range": f"bytes {first}-{stop - 1}/{size}"}


def _none_such(size: int) -> Response:
    return Response(status_code=416, headers={"Accept-Ranges": "bytes", "Content-Range": f"bytes */{size}"})


async def _pieces(path: Path, first: int, stop: int) -> AsyncIterator[bytes]:
    """A part of a file, and no more of it should it grow meanwhile."""
    async with await anyio.open_file(path, "rb") as file:
        await file.seek(first)
        while first < stop and (piece := await file.read(min(_PIECE, stop - first))):
            first += len(piece)
            yield piece
