"""What other programs read of a selection of sounds: a table (CSV), a playlist (M3U), an edit decision list (CMX 3600)."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..printable import printable

FRAME_RATES = (24, 25, 30)
"""Frames a second that an EDL of whole frames may count in. All of them are non-drop-frame."""
FRAME_RATE = 25

_MOST_EVENTS = 999  # an event has three digits
_RECORD_START = 3600  # seconds; by custom a programme begins at 01:00:00:00
_DAY = 24 * 3600
_TITLE = 70
_REEL = 8
_RESERVED_REELS = {"AX", "BL"}  # "auxiliary" and "black"


@dataclass(frozen=True)
class Listed:
    """A sound of a list.

    Attributes:
        file: where the list's reader finds it, below the list's own folder or from the root.
        source: the recording that it was taken from.
        start, end: the part that is meant, in seconds of `source`; `end` is None where it is not known, for the whole.
        offset: the second of `source` at which `file` begins: `start` of a cut, 0 of a whole file.
        cut: `file` is a part of `source`, and not the same sound.
        query, rank, score: by which it was found; empty and None where it was not.
    """

    file: str
    source: Path
    start: float
    end: float | None
    offset: float = 0.0
    query: str = ""
    rank: int | None = None
    score: float | None = None
    cut: bool = False


def table(listed: Sequence[Listed]) -> bytes:
    """A CSV, UTF-8, with a line for each sound."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(("file", "query", "rank", "score", "start", "end", "source"))
    for each in listed:
        score = None if each.score is None else round(each.score, 6)
        end = None if each.end is None else round(each.end, 3)
        rows.writerow((each.file, each.query, each.rank, score, round(each.start, 3), end, _utf8(str(each.source))))
    return out.getvalue().encode("utf-8", "surrogateescape")


def playlist(listed: Iterable[Listed]) -> bytes:
    """An extended M3U, UTF-8. A player that knows VLC's option begins a whole file where the part begins."""
    lines = ["#EXTM3U"]
    for each in listed:
        begins = each.start - each.offset
        seconds = -1 if begins > 0 or each.end is None else round(each.end - each.start)
        lines.append(f"#EXTINF:{seconds},{printable(each.source.name)}")
        if begins > 0:
            lines.append(f"#EXTVLCOPT:start-time={begins:.3f}")
        name = each.file
        if not name.isprintable():  # a line break would end the name, and halves of characters are no UTF-8
            name = Path(name).as_uri() if os.path.isabs(name) else printable(name)
        lines.append(f"./{name}" if name.startswith(("#", " ")) else name)
    return "".join(f"{line}\n" for line in lines).encode()


def edit_lists(listed: Iterable[Listed], title: str, rate: int = FRAME_RATE) -> list[bytes]:
    """The sounds one behind the other as CMX 3600 EDLs: cuts on the audio tracks 1 and 2, from record time 01:00:00:00 on.

    One EDL has 999 events and ends before 24 hours; what goes beyond is in the next one. A part begins at the frame in which it
    begins. What has no timecode, since its end is not known or lies beyond 24 hours, stands as a comment. Of a cut, file and
    timecode are those of the WAV; a comment says from which file and second it was cut.

    Args:
        rate: frames a second, whole; FCM says non-drop-frame.
    """
    lists: list[bytes] = []
    reels: dict[str, str] = {}  # of files, since the codes are those of files
    lines, count, record = _head(title, rate), 0, _RECORD_START * rate
    for each in listed:
        name = printable(os.path.basename(each.file))
        start = each.start - each.offset
        first = math.floor(start * rate + 1e-6)
        length = 0 if each.end is None else max(1, round((each.end - each.offset - start) * rate))
        if not length or first + length >= _DAY * rate or length >= (_DAY - _RECORD_START) * rate:
            lines.append(f"* WITHOUT TIMECODE: {name}")
            continue
        if count == _MOST_EVENTS or record + length >= _DAY * rate:
            lists.append(_joined(lines))
            lines, count, record = _head(title, rate), 0, _RECORD_START * rate
        count += 1
        reel = reels.setdefault(each.file, _reel(each.source, set(reels.values())))
        codes = " ".join(timecode(frame, rate) for frame in (first, first + length, record, record + length))
        lines.append(f"{count:03d}  {reel:<{_REEL}} {'AA':<5} {'C':<8} {codes}")
        lines.append(f"* FROM CLIP NAME: {name}")
        # The file whose timecode it is. A program that took the original would play another place of it.
        lines.append(f"* SOURCE FILE: {printable(each.file if each.cut else str(each.source))}")
        if each.cut:
            lines.append(f"* CUT FROM: {printable(str(each.source))} AT SECOND {each.offset:.3f}")
        record += length
    return [*lists, _joined(lines)]


def timecode(frames: int, rate: int) -> str:
    """Frames as hours, minutes, seconds and frames, non-drop-frame."""
    seconds, frame = divmod(frames, rate)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame:02d}"


def _head(title: str, rate: int) -> list[str]:
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    plain = " ".join(re.sub(r"[^\x20-\x7e]", " ", plain).split())
    return [f"TITLE: {(plain or 'sounds')[:_TITLE]}", "FCM: NON-DROP FRAME", f"* FRAME RATE: {rate}"]


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


def _reel(source: Path, taken: set[str]) -> str:
    """Up to eight capital letters and digits that no other file of the list has."""
    plain = unicodedata.normalize("NFKD", source.stem).encode("ascii", "ignore").decode().upper()
    plain = re.sub(r"[^A-Z0-9]", "", plain) or "SOUND"
    reel, number = plain[:_REEL], 1
    while reel in taken | _RESERVED_REELS:
        number += 1
        reel = f"{plain[: _REEL - len(str(number))]}{number}"
    return reel


def _utf8(path: str) -> str:
    """A path such that writing it as UTF-8 with `surrogateescape` gives its own bytes."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")
