"""What a sound file says of itself beside its sound: what people wrote into it, and how it was recorded.

Whatever is wrong with it costs the words that cannot be read, and nothing else. It is text to look for and to show, and nothing
in it is believed: not its sizes, not its addresses.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .formats import PYAV_SUFFIXES, SOUNDFILE_SUFFIXES
from .pyav_decoder import SAFELY, has_pyav
from .riff import chunks, listed

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_LETTERS = 2000
"""Of one field; the rest is left out."""
_MOST_FIELDS = 48
_MOST_BYTES = 32 << 20  # read at a time of a file's tags, pictures in them included
_DEEPEST = 40  # elements within elements of XML
_INFO = {
    b"INAM": "title",
    b"IART": "artist",
    b"ICMT": "comment",
    b"IKEY": "keywords",
    b"ISBJ": "subject",
    b"IGNR": "genre",
    b"IPRD": "album",
    b"ISRC": "source",
    b"ICOP": "copyright",
    b"IENG": "engineer",
    b"ITCH": "technician",
    b"IMED": "medium",
    b"ICRD": "created",
}
_TAGS = ("title", "artist", "albumartist", "composer", "album", "genre", "year", "comment")
_IXML_USEFUL = {"project", "scene", "take", "tape", "note"}
_XMP_NOISE = re.compile(r"(?:^|/)(?:xmpMM|stEvt|stRef|stMfs|x|xmpNote|photoshop:ICCProfile)\b|(?:Date|Tool|ID|format)$")
_XMP_PREFIXES = {
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://ns.adobe.com/xmp/1.0/DynamicMedia/": "xmpDM",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/xap/1.0/mm/": "xmpMM",
    "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#": "stEvt",
    "http://ns.adobe.com/xap/1.0/sType/ResourceRef#": "stRef",
    "http://ns.adobe.com/photoshop/1.0/": "photoshop",
    "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/": "Iptc4xmpCore",
}
_DATE = re.compile(r"\s*(\d{4})[-_:/. ](\d{2})[-_:/. ](\d{2})(?!\d)")


class Metadata(NamedTuple):
    """What a file says of itself.

    Attributes:
        channels, rate: of its sound, the rate in Hz; 0 where it is not known.
        recorded: the day that it names as that of the recording, if it does.
        fields: what is written in it, by the name of the field: `bext description`, `title`, `xmp dc:subject`.
    """

    channels: int
    rate: int
    recorded: date | None
    fields: dict[str, str]


def read_metadata(path: Path) -> Metadata:
    """What a file says of itself. Whatever cannot be read of it is left out; nothing is raised."""
    fields: dict[str, str] = {}
    channels = rate = 0
    with contextlib.suppress(Exception):
        fields |= dict(_of_riff(path))
    with contextlib.suppress(Exception):
        tags = _tags(path)
        channels, rate = tags.channels or 0, tags.samplerate or 0
        for name, text in _of_tags(tags):
            fields.setdefault(name, text)
    if not (channels and rate):
        with contextlib.suppress(Exception):
            channels, rate = _layout(path)
    told = {name: text for name, raw in fields.items() if (text := clean(raw))}
    recorded = next((day for name in ("bext date", "created") if (day := _day(told.get(name, "")))), None)
    return Metadata(_small(channels, 1 << 15), _small(rate, 1 << 31), recorded, dict(list(told.items())[:_MOST_FIELDS]))


def clean(text: str) -> str:
    """Text as it may be kept and shown: one line of what can be printed, at most `MOST_LETTERS` letters."""
    text = text.encode("utf-8", "replace").decode()[: 4 * MOST_LETTERS]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:MOST_LETTERS]


def _small(value: Any, bound: int) -> int:
    return value if isinstance(value, int) and 0 < value < bound else 0


def _day(text: str) -> date | None:
    match = _DATE.match(text)
    with contextlib.suppress(ValueError):
        return date(*map(int, match.groups())) if match else None
    return None


def _of_riff(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as stream:
        for name, chunk in chunks(stream, {b"bext", b"iXML", b"LIST", b"_PMX"}):
            with contextlib.suppress(Exception):  # each for itself
                yield from _OF_CHUNK[name](chunk)


def _bext(chunk: bytes) -> Iterator[tuple[str, str]]:
    """The text of Broadcast Wave (EBU Tech 3285)."""
    for name, start, size in (
        ("bext description", 0, 256),
        ("bext originator", 256, 32),
        ("bext reference", 288, 32),
        ("bext date", 320, 10),
    ):
        yield name, _decoded(chunk[start : start + size])


def _info(chunk: bytes) -> Iterator[tuple[str, str]]:
    for name, value in listed(chunk, b"INFO"):
        if name in _INFO:
            yield _INFO[name], _decoded(value)


def _ixml(chunk: bytes) -> Iterator[tuple[str, str]]:
    for path, text in _texts(_parsed(chunk)):
        names = [part.lower() for part in path]
        if len(names) == 1 and names[0] in _IXML_USEFUL:
            yield f"ixml {names[0]}", text
        elif names[0] in ("user", "aswg", "bext"):
            yield " ".join(("ixml", *names)), text


def _xmp(chunk: bytes) -> Iterator[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for path, text in _texts(_parsed(chunk), attributes=True):
        names = [part for part in path if not part.startswith(("rdf:", "x:"))]
        whole = "/".join(names)
        if names and ":" in whole and not _XMP_NOISE.search(whole):
            found.setdefault(names[0], []).append(text)
    yield from ((f"xmp {name}", "; ".join(dict.fromkeys(texts))) for name, texts in found.items())


_OF_CHUNK = {b"bext": _bext, b"iXML": _ixml, b"LIST": _info, b"_PMX": _xmp}


def _parsed(chunk: bytes) -> Element:
    """XML without entities, which could blow up or fetch what lies elsewhere. Raises where it is none."""
    from defusedxml.ElementTree import fromstring

    root: Element = fromstring(chunk.strip(b"\0 \r\n\t"), forbid_dtd=True)
    return root


def _texts(root: Element, *, attributes: bool = False) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts of a document, each with the names of the elements below the root that it is in."""
    waiting: list[tuple[Element, tuple[str, ...]]] = [(root, ())]
    while waiting:
        element, path = waiting.pop()
        if len(path) > _DEEPEST:
            continue
        if path and element.text and element.text.strip():
            yield path, element.text
        if attributes:
            own = ((_name(key), text) for key, text in element.attrib.items() if text.strip())
            yield from (((*path, name), text) for name, text in own if not name.startswith(("rdf:", "x:")))
        waiting += reversed([(child, (*path, _name(child.tag))) for child in element])


def _name(tag: Any) -> str:
    """The name of an element or attribute with a short prefix for its namespace; none of those that are XML's own."""
    space, _, name = str(tag)[1:].partition("}") if str(tag).startswith("{") else ("", "", str(tag))
    if space.endswith("22-rdf-syntax-ns#"):
        return f"rdf:{name}"
    if space in ("adobe:ns:meta/", "http://www.w3.org/XML/1998/namespace"):
        return f"x:{name}"
    return f"{_XMP_PREFIXES.get(space, 'x-other')}:{name}" if space else name


def _decoded(raw: bytes) -> str:
    """Text of a RIFF chunk up to its end: UTF-8 where it is that, else as Windows of the West wrote it."""
    raw = raw.split(b"\0", 1)[0]
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


class _Bounded(io.FileIO):
    """A file of which nobody reads very much at a time, whatever sizes stand in it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _MOST_BYTES:
            size = _MOST_BYTES
        return super().read(size) or b""


def _tags(path: Path) -> Any:
    """ID3, Vorbis comments and their like. Raises where it is no kind of file that has them."""
    from tinytag import TinyTag

    with _Bounded(path, "r") as stream:
        return TinyTag.get(filename=str(path), file_obj=io.BufferedReader(stream), tags=True, duration=True, image=False)


def _of_tags(tags: Any) -> Iterator[tuple[str, str]]:
    for name in _TAGS:
        if isinstance(value := getattr(tags, name, None), str):
            yield name, value
    for name, values in dict(tags.other).items():
        if str(name).lower() == "xmp":
            with contextlib.suppress(Exception):
                yield from _xmp(str(values[0]).encode())
            continue
        texts = [value for value in (values if isinstance(values, list) else [values]) if isinstance(value, str)]
        if texts and len(name) <= 40 and str(name).upper().encode() not in _INFO:  # which `_info` has read, by their names
            yield clean(str(name).lower()), "; ".join(texts)


def _layout(path: Path) -> tuple[int, int]:
    """Channels and rate by the header that the decoders read. Raises where there is none."""
    suffix = path.suffix.lower()
    if suffix in SOUNDFILE_SUFFIXES:
        import soundfile

        with contextlib.suppress(soundfile.LibsndfileError), path.open("rb") as stream:
            told = soundfile.info(stream)
            return told.channels, told.samplerate
    if suffix in PYAV_SUFFIXES | SOUNDFILE_SUFFIXES and has_pyav():
        import av

        # Never by name, as `PyAVDecoder` has it.
        with path.open("rb") as stream, av.open(stream, options=dict(SAFELY), metadata_errors="replace") as container:
            context = container.streams.audio[0].codec_context
            return context.channels, context.sample_rate
    return 0, 0
