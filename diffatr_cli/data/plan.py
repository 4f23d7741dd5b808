"""What a caption file asks for: the clips to prepare, and what in it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Item(NamedTuple):
    """A clip to prepare."""

    clip_id: str
    split: str
    captions: tuple[str, ...]
    name: str
    """The prepared file's name under its split; made safe and unique by `prepare`."""
    source: str | None
    """A file, a description of what to generate, or None when the recording is missing."""
    license: str | None = None


class Skip(NamedTuple):
    """Something listed that did not become a clip or a caption."""

    split: str
    what: str
    """A file, a clip, or FILE:LINE of a caption file."""
    reason: str


@dataclass
class Plan:
    """What a caption file asks for: filled in by the readers of the data sets."""

    items: list[Item] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
