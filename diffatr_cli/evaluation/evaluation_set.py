"""What a test asks: the queries of a split in each direction, and the candidates that each is to find, by a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..core.text import normalise_caption
from ..data.manifest import Clip, Dataset, load_dataset
from ..data.plan import Plan, Skip
from ..data.tables import read_csv
from ..errors import UsageError
from ..files import file_hash
from ..printable import counted
from ..types import Direction
from .embedded_split import Captions
from .protocol import PAPER, Protocol, protocol_named

SHOWN = 3  # rows of a file that are named where many cannot be used


@dataclass(frozen=True)
class RetrievalTask:
    """The queries of one direction.

    Attributes:
        queries: (q,) their places among the split's captions (t2a) or clips (a2t), ascending.
        relevant: for each query the places of the candidates that it is to find, at least one.
        clips: (q,) the clip that each query belongs to.
    """

    queries: np.ndarray
    relevant: list[np.ndarray]
    clips: np.ndarray


@dataclass(frozen=True)
class EvaluationSet:
    """A split of a data set with a protocol.

    Attributes:
        relevance_hash: of the file that says what is relevant; "" where there is none.
        notes: what is worth knowing beside the result.
    """

    dataset: Dataset
    split: str
    captions: Captions
    protocol: Protocol
    tasks: dict[Direction, RetrievalTask]
    relevance_hash: str = ""
    notes: tuple[str, ...] = ()

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of the split, in their order."""
        return self.dataset.split(self.split)

    @property
    def query_clips(self) -> dict[Direction, np.ndarray]:
        """The clip that each query belongs to, by direction."""
        return {direction: task.clips for direction, task in self.tasks.items()}


def clip_file(clip: Clip) -> str:
    """The name of the recording that a clip was made from, as the tables of its data set call it."""
    return PurePosixPath(clip.clip_id).name


def load_evaluation_set(
    data: Path, target: str, split: str = "test", protocol: str = PAPER, relevance: Path | None = None
) -> EvaluationSet:
    """A split of a prepared data set with a protocol.

    Args:
        relevance: a CSV of `caption,fname`, a row for each pair that belongs together, for the protocol that reads one.

    Raises:
        UsageError: no such protocol; a file of relevance is lacking, not wanted, or fits no caption.
        DiffATRError: the data set is not prepared, or the file cannot be read.
    """
    chosen = protocol_named(protocol)
    if (chosen.relevance == "file") != (relevance is not None):
        raise UsageError(
            f"--protocol {protocol}: needs --relevance FILE, a CSV of caption,fname"
            if relevance is None
            else f"--relevance: --protocol {protocol} reads no such file"
        )
    dataset = load_dataset(data, target)
    clips = dataset.split(split)
    captions = Captions.of(clips)
    notes: list[str] = []
    if relevance is not None:
        of_caption = _listed(relevance, clips, captions, notes)
    elif chosen.relevance == "shared":
        of_caption = _shared(captions)
    else:
        of_caption = list(captions.clip_index[:, None])
    tasks = {direction: _task(direction, captions, of_caption) for direction in chosen.directions}
    if left_out := len(captions.texts) - len(tasks["t2a"].queries):
        notes.append(f"{relevance}: lists nothing for {left_out} of {len(captions.texts)} captions; they are not asked")
    file = "" if relevance is None else file_hash(relevance)
    return EvaluationSet(dataset, split, captions, chosen, tasks, file, tuple(notes))


def _task(direction: Direction, captions: Captions, of_caption: Sequence[np.ndarray]) -> RetrievalTask:
    """The task by the clips (distinct places) that each caption fits."""
    if direction == "t2a":
        asked = np.array([i for i, clips in enumerate(of_caption) if len(clips)], dtype=int)
        return RetrievalTask(asked, [of_caption[i] for i in asked], captions.clip_index[asked])
    fitting: list[list[int]] = [[] for _ in captions.first[1:]]
    for caption, clips in enumerate(of_caption):
        for clip in clips:
            fitting[clip].append(caption)
    asked = np.flatnonzero([len(each) > 0 for each in fitting])
    return RetrievalTask(asked, [np.array(fitting[clip]) for clip in asked], asked)


def _shared(captions: Captions) -> list[np.ndarray]:
    """For each caption the clips that have it, whatever its case and punctuation."""
    having: dict[str, set[int]] = {}
    texts = [normalise_caption(text) for text in captions.texts]
    for text, clip in zip(texts, captions.clip_index.tolist(), strict=True):
        having.setdefault(text, set()).add(clip)
    return [np.array(sorted(having[text])) for text in texts]


def _listed(path: Path, clips: Sequence[Clip], captions: Captions, notes: list[str]) -> list[np.ndarray]:
    """For each caption the clips that a CSV of `caption,fname` lists for it; rows that fit nothing are told in `notes`."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(captions.texts):
        places.setdefault(normalise_caption(text), []).append(place)
    names: dict[str, set[int]] = {}
    for number, clip in enumerate(clips):
        file = clip_file(clip)
        for name in {clip.clip_id, file, PurePosixPath(file).stem}:
            names.setdefault(name, set()).add(number)
    plan, found = Plan(), [set[int]() for _ in captions.texts]
    for row, cells in read_csv(path, "", ("caption", "fname"), plan):
        name, wanted = cells["fname"].strip(), places.get(normalise_caption(cells["caption"]), [])
        fitting = names.get(name) or names.get(PurePosixPath(name).stem, set())
        if not wanted or len(fitting) != 1:
            what = "no such caption" if not wanted else f"{len(fitting) or 'no'} clips of the split are called {name!r}"
            plan.skipped.append(Skip("", row, what))
        for place in wanted if len(fitting) == 1 else ():
            found[place] |= fitting
    if not any(found):
        first = "".join(f" ({skip.what}: {skip.reason})" for skip in plan.skipped[:1])
        raise UsageError(f"{path}: no row has a caption and a file of the split{first}. Name the file for this split.")
    if plan.skipped:
        shown = "; ".join(f"{skip.what}: {skip.reason}" for skip in plan.skipped[:SHOWN])
        more = "; ..." if len(plan.skipped) > SHOWN else ""
        notes.append(f"{path}: {counted(len(plan.skipped), 'row')} passed over ({shown}{more})")
    notes += plan.notes
    return [np.array(sorted(each), dtype=int) for each in found]
