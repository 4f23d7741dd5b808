"""What people write into a query beside the sound: `dog length:<5 in:field -music`. docs/names.md has the grammar for users.

    query     = term { space term }
    term      = [ "-" ] key ":" values | "-" words | words
    key       = "length" | "in" | "format" | "channels" | "rate" | "date"
    values    = value { "," value }              any of them
    value     = [ "<" | "<=" | ">" | ">=" ] point | point ".." point | ".." point | point ".."      of numbers and dates
              | words                                                                      of "in" and "format"
    words     = word | '"' letters but '"' '"'

A "-" before a key turns the filter round; before a word, it leaves out the files that have it in their name, their folders or
their metadata. All that is no filter describes the sound, and is left as it is: a colon after another word, a "-" within one
or before a number.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal, NamedTuple

from ..errors import UsageError

Key = Literal["length", "in", "format", "channels", "rate", "date", "word"]
KEYS: Mapping[str, Key] = {
    "length": "length",
    "duration": "length",
    "in": "in",
    "folder": "in",
    "format": "format",
    "channels": "channels",
    "rate": "rate",
    "samplerate": "rate",
    "date": "date",
}
"""What may be written for each."""
_TERM = re.compile(r'(?:[^\s"]|(?<=[:,])"[^"]*"|(?<![:,])")+|"')  # a quote opens at the start of a term, or of a value
_QUOTED = re.compile(r'(-?)"([^"]*)"(?=\s|$)')
_KEYED = re.compile(r"(-?)([A-Za-z]+):(\S.*)?", re.DOTALL)
_EXCLUDED = re.compile(r"-(?=[^\W\d_])\S+")
_EXAMPLES = {
    "length": "length:<5, length:2..10, length:1:30, length:>500ms, length:>2min",
    "channels": "channels:1, channels:stereo, channels:>2",
    "rate": "rate:48k, rate:44100, rate:>=96k",
    "date": "date:2024, date:>=2024-05, date:2024-05-01..2024-06",
    "in": "in:field, in:2024/forest, in:*take*",
    "format": "format:wav, format:flac,aiff",
}
_LATEST = date(9999, 12, 31).toordinal()
_FIRST_DAY = date(1970, 1, 1).toordinal()


class FilterError(UsageError):
    """What was written cannot be a filter.

    Attributes:
        plain: what is wrong, in a sentence or two.
        at: from which letter of the query to which.
    """

    def __init__(self, plain: str, text: str, start: int, end: int) -> None:
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        marks = " " * _columns(shown[:start]) + "^" * max(1, _columns(shown[start:end]))
        super().__init__(plain, f"  {shown}", f"  {marks}")  # lines, as a command shows them
        self.plain, self.at = plain, (start, end)


class Interval(NamedTuple):
    """From `low` to `high`, each of them within it or, where it is open there, not."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is within."""
        return (self.low < value if self.low_open else self.low <= value) and (
            value < self.high if self.high_open else value <= self.high
        )


@dataclass(frozen=True)
class Condition:
    """One filter of a query.

    Attributes:
        key: what it is about; `word` is a word that files are not to have.
        intervals: any of which a number fits: seconds, channels, Hz, days since 1970-01-01.
        words: any of which fits.
        negated: only what does not fit is looked for. What is not known fits neither.
        said: as it was written.
    """

    key: Key
    intervals: tuple[Interval, ...]
    words: tuple[str, ...]
    negated: bool
    said: str


class Asked(NamedTuple):
    """A query: the `words` that describe the sound, empty where there are none, and the filters."""

    words: str
    conditions: tuple[Condition, ...]


def read_query(text: str) -> Asked:
    """Tell the filters of a query from the sound that it describes. A text without any is left as it is.

    Raises:
        FilterError: a filter makes no sense; it points at the place.
    """
    words, conditions = [], []
    for start, term in _terms(text):
        condition = _condition(text, start, term)
        if condition:
            conditions.append(condition)
        else:
            quoted = _QUOTED.fullmatch(term)
            words.append(quoted[2] if quoted and not quoted[1] else term)
    return Asked(" ".join(words) if conditions else text, tuple(conditions))


def read_filters(text: str) -> tuple[Condition, ...]:
    """The filters of a text that has nothing else. Raises FilterError, also for words that are none."""
    for start, term in _terms(text):
        if _condition(text, start, term) is None:
            raise FilterError(
                f"{term} is no filter. Filters are, for example, length:<5 in:field -music", text, start, start + len(term)
            )
    return read_query(text).conditions


def filters_of(text: str) -> str:
    """The filters of a query, as a text that `read_filters` takes; what the query describes is left out. Raises FilterError."""
    return " ".join(each.said for each in read_query(text).conditions)


def _terms(text: str) -> Iterator[tuple[int, str]]:
    at = 0
    while match := re.compile(r"\S").search(text, at):
        at = match.start()
        whole = _QUOTED.match(text, at) or _TERM.match(text, at)
        assert whole is not None
        yield at, whole[0]
        at = whole.end()


def _condition(text: str, start: int, term: str) -> Condition | None:
    """The filter that a term is; None where it belongs to the description."""
    if keyed := _KEYED.fullmatch(term):
        minus, name, value = keyed.groups()
        key = KEYS.get(name.lower())
        at = start + keyed.start(3)
        if key is None:
            _check_unknown(text, start + len(minus), name, value)
        elif value is None:
            end = start + len(term)
            raise FilterError(f"{name}: needs a value right after it, such as {_EXAMPLES[key]}", text, end - 1, end)
        else:
            intervals, words = [], []
            for offset, each in _split(value):
                if not each:
                    raise FilterError(f"a value is missing here, such as {_EXAMPLES[key]}", text, at + offset, at + offset + 1)
                if key in ("in", "format"):
                    words.append(_word(key, each, text, at + offset))
                else:
                    intervals.append(_interval(key, each, text, at + offset))
            return Condition(key, tuple(intervals), tuple(words), bool(minus), term)
    quoted = _QUOTED.fullmatch(term)
    if (quoted and quoted[1]) or _EXCLUDED.fullmatch(term):
        word = quoted[2] if quoted else term[1:]
        if not any(letter.isalnum() for letter in word):
            raise FilterError("there is no word to leave out here", text, start, start + len(term))
        return Condition("word", (), (word,), True, term)
    return None


def _check_unknown(text: str, start: int, name: str, value: str | None) -> None:
    """Raises FilterError where a key was probably meant; else it is a word with a colon."""
    near = difflib.get_close_matches(name.lower(), KEYS, 1, 0.75)
    if value and (near or value[0] in "<>="):
        hint = f"Did you mean {near[0]}:?" if near else f"There are {', '.join(dict.fromkeys(KEYS.values()))}."
        raise FilterError(
            f'there is no filter {name}: {hint} Words with a colon go in quotes: "{name}:..."', text, start, start + len(name)
        )


def _split(value: str) -> Iterator[tuple[int, str]]:
    """Values between commas that are not in quotes, with their places."""
    at = 0
    for part in re.findall(r'(?:"[^"]*"|[^,])+|(?<=,)(?=,)|(?<=,)$|^(?=,)', value):
        yield at, part
        at += len(part) + 1


def _word(key: Key, value: str, text: str, at: int) -> str:
    word = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    word = word.strip().strip("/\\") if key == "in" else word.strip().strip(".").lower()
    if not word or '"' in word:
        raise FilterError(f"this is no name for {key}: {value}. Write for example {_EXAMPLES[key]}", text, at, at + len(value))
    return word


def _interval(key: Key, value: str, text: str, at: int) -> Interval:
    """Where a number or a date is to lie."""

    def point(said: str, offset: int) -> Interval:
        found = _POINTS[key](said.strip().lower())
        if found is None:
            what = {"length": "length of time", "channels": "number of channels", "rate": "sample rate", "date": "date"}[key]
            begin, end = (at + offset, at + offset + len(said)) if said else (at, at + len(value))
            raise FilterError(f"this is no {what}: {said or value}. Write for example {_EXAMPLES[key]}", text, begin, end)
        return found

    if match := re.match(r"<=|>=|<|>|=", value):
        sign, rest = match[0], value[match.end() :]
        exact = point(rest, match.end())
        if sign == "=":
            return exact
        # Of a day, a month or a year the border is where it begins or ends; of a number, the number itself.
        low, high = (exact.low, exact.high) if key == "date" else (_middle(exact),) * 2
        whole = key == "date"
        return {
            "<": Interval(high=low, high_open=True),
            "<=": Interval(high=high, high_open=whole),
            ">": Interval(low=high, low_open=not whole),
            ">=": Interval(low=low),
        }[sign]
    if ".." in value:
        first, _, last = value.partition("..")
        if not first and not last:
            raise FilterError(f"both ends are missing here. Write for example {_EXAMPLES[key]}", text, at, at + len(value))
        begin = point(first, 0) if first else Interval()
        end = point(last, len(first) + 2) if last else Interval()
        whole = key == "date"
        low, high = (begin.low if whole or not first else _middle(begin)), (end.high if whole or not last else _middle(end))
        if low > high:
            raise FilterError(f"this range ends before it begins: {value}", text, at, at + len(value))
        return Interval(low, high, high_open=whole and bool(last))
    return point(value, 0)


def _middle(exact: Interval) -> float:
    return exact.low if exact.low == exact.high else _rounded((exact.low + exact.high) / 2)


def _rounded(value: float) -> float:
    """A number that was written in decimals and halved borders, as it was written."""
    return float(f"{value:.12g}")


def _seconds(said: str) -> Interval | None:
    """`5`, `0.5s`, `500ms`, `2min`, `1h`, `1:30`, `1:02:03`; a length that rounds to it."""
    if clock := re.fullmatch(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{2}(?:\.\d{1,6})?)", said):
        hours, minutes, seconds = clock.groups()
        step = 10.0 ** -len(seconds.partition(".")[2])
        return _about(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), step)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{0,6})?|\.\d{1,6})(ms|s|sec|m|min|h)?", said)
    if match is None:
        return None
    unit = {"ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}.get(match[2] or "s", 1.0)
    return _about(float(match[1]) * unit, unit * 10.0 ** -len(match[1].partition(".")[2]))


def _about(value: float, step: float) -> Interval:
    return Interval(value - step / 2, value + step / 2, high_open=True)


def _channels(said: str) -> Interval | None:
    count = {"mono": "1", "stereo": "2", "quad": "4", "5.1": "6", "7.1": "8"}.get(said, said)
    return Interval(int(count), int(count)) if re.fullmatch(r"\d{1,5}", count, re.ASCII) else None


def _hertz(said: str) -> Interval | None:
    """`48000`, `44.1k`, `48khz`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(k)?(?:hz)?", said, re.ASCII)
    if match is None:
        return None
    value = _rounded(float(match[1]) * (1000 if match[2] else 1))
    return Interval(value, value)


def _days(said: str) -> Interval | None:
    """`2024`, `2024-05`, `2024-05-01`: all days of it."""
    match = re.fullmatch(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?", said, re.ASCII)
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    try:
        first = date(int(year or 0), month or 1, day or 1).toordinal()
    except ValueError:
        return None
    if day:
        end = first + 1
    elif month and month < 12:
        end = date(int(year or 0), month + 1, 1).toordinal()
    else:
        end = date(int(year or 0) + 1, 1, 1).toordinal() if year and year < 9999 else _LATEST + 1
    return Interval(first - _FIRST_DAY, end - _FIRST_DAY, high_open=True)


_POINTS: Mapping[str, Callable[[str], Interval | None]] = {
    "length": _seconds,
    "channels": _channels,
    "rate": _hertz,
    "date": _days,
}


def _columns(text: str) -> int:
    """How many places of a terminal a text takes."""
    return sum(0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)
