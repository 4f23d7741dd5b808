"""What a query asks for, as far as the model can tell: whether it learnt any such sound, misspelt words, negation, languages."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.text import normalise_caption
from ..data.audio import AUDIO_SUFFIXES

if TYPE_CHECKING:
    import numpy as np

    from ..core.bank import CaptionBank
    from ..model import Retriever

_SAME = 0.95  # cosine from which on a query is a caption that was learnt, whatever words it holds

_NEGATORS = (
    "anything but|everything but|all but|but not|but no|and no|with no|without any|without|except for|except|excluding|"
    "other than|apart from|instead of|there is no|is not|are not|isn't|isnt|aren't|arent|do not want|don't want|dont want|"
    "does not|do not|doesn't|doesnt|don't|dont|(?:the )?absence of|(?:a )?lack of|lacking|free of|free from|devoid of|minus|"
    "neither|nor|not|no|never"
)
_NEGATION = re.compile(rf"^(?P<wanted>.*?)\b(?P<word>{_NEGATORS})\b(?P<unwanted>.*)$", re.IGNORECASE)
_FILLERS = re.compile(
    r"^(?:a|an|the|any|some|that|which|who|and|or|but|is|are|there|with|of|in|recordings?|sounds?|clips?|files?|audio|"
    r"something|anything|everything|all|find|show|me|give)$"
)
_TAIL = re.compile(r"\b(?:in it|at all|please|in there|anywhere)\b", re.IGNORECASE)

_FOREIGN = frozenset(
    word
    for words in (
        "der das ein eine einen und auf mit dem des zu",
        "el los las una del con gli un di che il",
        "le les une du dans sur qui que et",
        "het een uma ett och",
    )
    for word in words.split()
)
"""Function words of languages near to English in script, less those that are English words too."""


@dataclass(frozen=True)
class Negation:
    """A query that names what is not wanted: what is wanted, if it says so, and what is not."""

    wanted: str | None
    unwanted: str

    @property
    def remedy(self) -> str:
        """How to ask for it."""
        wanted = f'"{self.wanted}"' if self.wanted else "WHAT_YOU_WANT"
        return f'diffatr query {wanted} --not "{self.unwanted}"'


@dataclass(frozen=True)
class Reading:
    """What is known of a query.

    Attributes:
        familiarity: the cosine of the query to the nearest training caption, in the caption encoder's space, and `nearest`, that
            caption; None of a model that kept none.
        strangeness: by how much that falls short of what names something learnt; 0 where it does not, or is not known.
        expected: the cosine that a sound which matches may be expected to have to it; 0 where nothing is known of that.
        taught: the words of the query, or forms of them, stand in one of the training captions: its name was learned, however far
            the caption encoder finds the whole query from that caption.
        respelt: what was probably meant, where words are misspelt.
        foreign: it looks like another language than English.
        negation: what it negates.
        pooled: (F,) its unit vector in the caption encoder's space; None of a model that kept no captions.
    """

    text: str
    familiarity: float | None = None
    nearest: str | None = None
    strangeness: float = 0.0
    expected: float = 0.0
    taught: bool = False
    respelt: str | None = None
    foreign: bool = False
    negation: Negation | None = None
    pooled: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The fields of `query --json` that tell of the query."""
        return {
            "familiarity": None if self.familiarity is None else round(self.familiarity, 6),
            "nearest_caption": self.nearest,
            "suggestion": self.respelt,
            "foreign": self.foreign,
            "negation": self.negation and {"wanted": self.negation.wanted, "unwanted": self.negation.unwanted},
        }


def read_queries(retriever: Retriever, texts: Sequence[str], pooled: np.ndarray | None = None) -> list[Reading]:
    """What each text asks for. `pooled`: what `Retriever.pool_text` gives of the texts, where it is known already."""
    bank = retriever.bank
    if bank is None:
        return [Reading(text, negation=negation_of(text)) for text in texts]
    pooled = retriever.pool_text(texts) if pooled is None else pooled
    found, nearest = bank.nearest(pooled)
    told = found.tolist(), nearest, bank.strangeness(found).tolist(), bank.expected(pooled).tolist()
    readings = []
    for text, own, cosine, caption, strangeness, expected in zip(texts, pooled, *told, strict=True):
        negation = None if cosine >= _SAME else negation_of(text, bank)
        respelt = _respelt(retriever, bank, text) if strangeness else None
        foreign = bool(strangeness) and respelt is None and _is_foreign(text, bank.words, retriever.words)
        taught = not strangeness or bank.holds(normalise_caption(text))
        readings.append(Reading(text, cosine, caption, strangeness, expected, taught, respelt, foreign, negation, own))
    return readings


def as_words(text: str) -> str:
    """A text as words, where it was written as files are called: "dog_barking.wav" and "Dog-Barking" are "dog barking"."""
    stem, ending = os.path.splitext(text)
    if ending.lower() in AUDIO_SUFFIXES:
        text = stem
    elif len(text.split()) > 1:
        return text.replace("_", " ")
    return re.sub(r"(?<=\w)[-_](?=\w)", " ", text).replace("_", " ")


def negation_of(text: str, bank: CaptionBank | None = None) -> Negation | None:
    """What a text negates; None where it negates nothing, or in words that captions use ("hums without pause")."""
    if (found := _NEGATION.match(text)) is None:
        return None
    said = normalise_caption(found["word"] + found["unwanted"])
    unwanted = re.sub(r"\bnor\b", "or", _TAIL.sub(" ", found["unwanted"]).strip(" .,;!?"), flags=re.IGNORECASE)
    if not normalise_caption(unwanted) or (bank is not None and any(f" {said} " in f" {caption} " for caption in bank.texts)):
        return None
    words = _TAIL.sub(" ", found["wanted"]).strip(" .,;!?").split()
    while words and _FILLERS.match(words[-1].lower().strip(",;")):
        words.pop()
    content = [word for word in words if not _FILLERS.match(word.lower())]
    return Negation(" ".join(words).strip(" ,;-") if content else None, " ".join(unwanted.split()))


def _letters(text: str) -> list[str]:
    """The words of a text, lower case, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return re.findall(r"[^\W\d_]+", plain)


def _respelt(retriever: Retriever, bank: CaptionBank, text: str) -> str | None:
    """The text with each word that nobody knows replaced by the nearest word of the captions, if that names something learnt."""
    unknown = [word for word in _letters(text) if word not in bank.words and word not in retriever.words and len(word) > 2]
    if not unknown:
        return None
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    counts = Counter(word for caption in bank.texts for word in caption.split())
    choices = [word for word, _ in sorted(counts.items(), key=lambda each: (-each[1], each[0])) if len(word) > 2]
    respelt = " ".join(_letters(text))
    for word in unknown:
        close = process.extractOne(word, choices, scorer=OSA.distance, score_cutoff=1 if len(word) < 8 else 2)
        if close is None:
            return None
        respelt = re.sub(rf"\b{word}\b", close[0], respelt)
    found, _ = bank.nearest(retriever.pool_text([respelt]))
    return respelt if found[0] >= bank.familiar else None


def _is_foreign(text: str, learnt: frozenset[str], known: frozenset[str]) -> bool:
    """Whether a text looks like another language than English: another script, words that serve other languages, or several
    words of which neither the captions nor the caption encoder know one whole."""
    words = _letters(text)
    if any(not unicodedata.name(letter, "LATIN").startswith("LATIN") for word in words for letter in word):
        return True
    if not known:
        return False
    strange = [word for word in words if word not in learnt and word not in known]
    return (bool(strange) and any(word in _FOREIGN for word in words)) or len(strange) == len(words) > 1
