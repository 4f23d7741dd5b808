"""The words of names as people write them: `DOORWood_Old Door Creak_JK`, `dogBark03`, `rain-on-tin.take2`; and of queries.

Words are compared by their stems, so that "barking dogs" finds `dog_bark`. The stems are those of a light stemmer for English:
they only have to be equal for forms of one word, and are never shown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# A run of capitals before a capitalised word, a word, a run of capitals, a number.
_PART = re.compile(r"[A-Z]{2,}(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_ACCENTS = re.compile("[\u0300-\u036f]")  # of Latin, Greek and Cyrillic letters; in other scripts marks make other letters
_LONGEST = 40  # letters of a word; what is longer is a hash, or no word
_VOWEL = re.compile(r"[aeiouy]")
_UNCOUNTED = frozenset(
    (
        *(
            "a",
            "an",
            "the",
            "of",
            "in",
            "on",
            "at",
            "to",
            "from",
            "by",
            "with",
            "and",
            "or",
            "for",
            "as",
            "is",
            "are",
            "be",
            "being",
        ),
        *(
            "it",
            "its",
            "this",
            "that",
            "there",
            "some",
            "something",
            "someone",
            "sound",
            "sounds",
            "noise",
            "noises",
            "recording",
        ),
        *("recordings", "clip", "clips", "file", "files", "audio", "heard", "hear"),
    )
)
"""Words that say nothing of which sound is meant; `sound` stands in many names and in many queries."""


def parts_of(text: str) -> list[str]:
    """The words and numbers of a text or name, in small letters without accents, in order."""
    return [part.lower()[:_LONGEST] for part in _PART.findall(_plain(text))]


def stems_of(text: str) -> Iterator[str]:
    """The stems of a text's words, in order, without those that say nothing of a sound.

    Numbers below 100 are of takes and versions as a rule: "3 dogs" is no word for `untitled_03`.
    """
    stems = (stem(part) for part in parts_of(text) if part not in _UNCOUNTED)
    return (each for each in stems if not (each.isdecimal() and len(each) < 3))


def _plain(text: str) -> str:
    """Without accents, which names often lose, and with wide letters and ligatures as they are written else."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """What forms of one English word have in common, of a word in small letters; of anything else itself."""
    if word.isdecimal():
        return word.lstrip("0") or "0"
    if len(word) < 3 or not word.isascii():
        return word
    word = _singular(word) if len(word) > 3 else word
    for ending in ("ings", "ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and _VOWEL.search(rest) and not (ending == "ed" and rest.endswith("e")):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    word = word[:-1] if len(word) > 3 and word.endswith("e") else word
    return f"{word[:-1]}i" if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou" else word


def _singular(word: str) -> str:
    """Without the ending of a plural, or of a verb's third person."""
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
