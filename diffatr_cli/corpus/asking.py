"""Searching an index as people ask: by sound and by name at once, among the files that the filters in the text leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..errors import UsageError
from .filtering import Columns
from .filters import Asked, Condition, read_filters, read_query
from .search import Found, search, search_texts
from .selection import By, Selection
from .snapshot import Recordings

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever


def ask_texts(
    retriever: Retriever,
    recordings: Recordings,
    texts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    by: By = "both",
    only: str = "",
    **options: Any,
) -> list[Found]:
    """`search_texts` for texts with filters, by what they say of the sound and of the name.

    Args:
        by: what files are found by.
        only: filters for all texts.
        options: as of `search`.

    Raises:
        FilterError: a filter makes no sense.
        UsageError: a text says nothing of a sound; and as `search`.
    """
    check_by(by, unwanted=options.get("unwanted") is not None)
    asked = [read_words(text) for text in texts]
    shared = read_filters(only)
    selections = [select(recordings, each.words, (*shared, *each.conditions), by) for each in asked]
    found = search_texts(retriever, recordings, [each.words for each in asked], sampling, selections=selections, **options)
    return [
        _told(recordings, each, selection, (*shared, *one.conditions))
        for each, selection, one in zip(found, selections, asked, strict=True)
    ]


def ask_sound(
    retriever: Retriever,
    recordings: Recordings,
    query: np.ndarray,
    sampling: Sampling | None = None,
    *,
    only: str = "",
    **options: Any,
) -> Found:
    """`search` for a sound, (D,), among the files that filters leave. Raises as `ask_texts`."""
    conditions = read_filters(only)
    selection = select(recordings, "", conditions, "sound")
    (found,) = search(retriever, recordings, query[None], sampling, refine=False, selections=[selection], **options)
    return _told(recordings, found, selection, conditions)


def read_words(text: str) -> Asked:
    """`read_query` for a text that has to say something of a sound. Raises UsageError where it does not."""
    asked = read_query(text)
    if asked.conditions and not any(letter.isalnum() for letter in asked.words):
        raise UsageError(f"{text}: filters alone. Say beside them what it sounds like, such as: dog barking {text.strip()}")
    return asked


def select(recordings: Recordings, words: str, conditions: Sequence[Condition], by: By) -> Selection:
    """What is asked of a search beside the sound: the words that names may have, and filters."""
    files = Columns.of(recordings).fitting(conditions) if conditions else None
    if by == "sound":
        return Selection(files)
    names = Columns.of(recordings).notes.names.scores(words)
    if by == "name":
        files = names > 0 if files is None else files & (names > 0)
    elif not names.any():
        return Selection(files)
    return Selection(files, names, by)


def check_by(by: str, *, unwanted: bool = False) -> None:
    """Raises UsageError for what is no `By`, or where names alone are asked for what files should not sound like."""
    if by not in get_args(By):
        raise UsageError(f"by {by}: there are {', '.join(get_args(By))}")
    if unwanted and by == "name":
        raise UsageError("What files should not sound like means nothing by name alone. Leave out one of the two.")


def _told(recordings: Recordings, found: Found, selection: Selection, conditions: Sequence[Condition]) -> Found:
    """What was found with what is known of the files, and the filters."""
    notes, number = recordings.notes, recordings.number_of
    hits = [replace(hit, facts=notes.facts(number[hit.path], hit.path)) if notes else hit for hit in found.hits]
    fitting = None
    if conditions:
        fitting = int(Columns.of(recordings).fitting(conditions).sum()) if selection.by == "name" else int(_count(selection))
    return replace(found, hits=hits, filters=tuple(each.said for each in conditions), fitting=fitting)


def _count(selection: Selection) -> int:
    return 0 if selection.files is None else int(selection.files.sum())
