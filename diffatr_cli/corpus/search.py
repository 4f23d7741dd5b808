"""Finding the sounds of a folder: cosine over every window, then diffusion over the best files.

Q queries, F files, W windows, S files of the shortlist, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..core.calibration import (
    distribution_of_cosines,
    needs_captions,
    needs_sounds,
    of_known,
    presence_features,
    score_features,
)
from ..core.ragged import Ragged
from ..core.sight import States
from ..core.text import normalise_caption
from ..core.windows import best_windows, mean_direction, spans
from ..errors import UsageError
from ..model import sampling_of
from .index import Recordings
from .notes import FileFacts
from .reading import Reading, as_words, read_queries
from .selection import EVERYTHING, By, Selection, best_of_contents, spread
from .stopwatch import stage

if TYPE_CHECKING:
    from ..core.calibration import Logistic
    from ..core.chain import OnStep
    from ..core.sampling import Sampling
    from ..core.scoring import Reranker
    from ..model import Retriever
    from ..types import Direction


PLAINLY = 0.07  # strangeness from which on it tells by itself, without the cosines and scores of a judgement of presence
LEAST = 0.03  # probability of the best candidate below which nothing is found: a find that no hit bears out is none


@dataclass(frozen=True)
class Hit:
    """One found file: `path` below the searched folder, and the window in it that fits best, in seconds.

    `score` is the probability that the file matches, or, of a model without calibration, cosine + weight * x0_hat; of a search by
    name alone, the share of the query's words that name and metadata have. `by`: `sound`, where only the sound counted, or the
    name has no word of the query; `name`, where the sound alone would not have brought it into the list; else `both`. `facts`
    are known of files of an index.
    """

    rank: int
    path: str
    start: float
    end: float
    score: float
    by: By = "sound"
    facts: FileFacts | None = None


Verdict = Literal["found", "absent", "unknown", "negated"]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        hits: best first.
        present: the probability that anything searched matches, None if unknown.
        calibrated: whether the hits' scores are probabilities.
        verdict: `found`; `absent`, where `present` is below what the calibration states; `unknown`, where that is so and no sound
            by the query's name was learned, or where the query is in another language; `negated`, where the query names what is
            not wanted; None where nothing is judged.
        reading: what is known of the query, where it is a text.
        filters: those of the query, as they were written.
        fitting: how many files fit these; None without filters.
    """

    hits: list[Hit]
    present: float | None
    calibrated: bool = False
    verdict: Verdict | None = None
    reading: Reading | None = None
    filters: tuple[str, ...] = ()
    fitting: int | None = None

    @property
    def certain(self) -> bool:
        """Whether the hits are given out as matches; else they are the nearest there is, and their scores no promise."""
        return self.verdict in (None, "found")

    @property
    def remark(self) -> str | None:
        """What is to be said of the query or of what was found, for people; None where there is nothing to say."""
        reading = self.reading
        if self.fitting == 0:
            return f"no file here fits {' '.join(self.filters)}."
        if reading is None or self.verdict in (None, "found", "absent"):
            return f"nothing here sounds like that{self._called}." if self.verdict == "absent" else None
        if self.verdict == "negated" and reading.negation:
            return (
                "the model looks for what a text names, also where the text says not. Say what you want, and apart from it what "
                f"you do not: {reading.negation.remedy}"
            )
        told = f"no sound by that name was learned; nearest: {reading.nearest}{self._called}."
        if reading.respelt:
            told += f' Did you mean "{reading.respelt}"?'
        return told + (" The model understands English alone." if reading.foreign else "")

    @property
    def _called(self) -> str:
        named = sum(hit.by != "sound" for hit in self.hits)
        return f"; {named} of these {'is' if named == 1 else 'are'} called so" if named else ""


@stage("embed")
def embed_sound(retriever: Retriever, waveform: np.ndarray) -> np.ndarray:
    """A sound as a query, (D,) unit vector: the direction of the mean over its windows. `waveform` is mono at the
    rate of the retriever's windowing, not empty."""
    return mean_direction(retriever.embed_audio(_windows(retriever, waveform)))


def hear_sound(retriever: Retriever, waveform: np.ndarray) -> tuple[np.ndarray, Ragged | None]:
    """A sound as `describe` takes it: the unit vectors of its windows, (W, D), rounded as an index keeps them, so that a file and
    its index give the same answer; and, for a model that re-ranks by frames, their frames as one sequence."""
    pieces = _windows(retriever, waveform)
    if not retriever.sees_frames:
        return _as_kept(retriever.embed_audio(pieces)), None
    vectors, frames = retriever.embed_with_frames(pieces)
    return _as_kept(vectors), Ragged.of(frames).joined()


def _as_kept(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16).astype(np.float32)


def token_states(retriever: Retriever, texts: Sequence[str]) -> Ragged | None:
    """The token states of texts, of the words by which `embed_texts` embeds them, for a model that re-ranks by frames; None for
    others."""
    return Ragged.of(retriever.token_states([as_words(text) for text in texts])) if retriever.sees_frames else None


def _windows(retriever: Retriever, waveform: np.ndarray) -> list[np.ndarray]:
    return [waveform[start:end] for start, end in spans(len(waveform), retriever.windowing)]


def search(
    retriever: Retriever,
    recordings: Recordings,
    queries: np.ndarray,
    sampling: Sampling | None = None,
    *,
    tokens: Ragged | None = None,
    unwanted: np.ndarray | None = None,
    refine: bool = True,
    readings: Sequence[Reading] | None = None,
    selections: Sequence[Selection] | None = None,
    top: int = 10,
    min_score: float | None = None,
) -> list[Found]:
    """The best files for each query, best first, each with its best window; files of equal score in order of their paths.

    Stage one gives each window its cosine to the query, and each file its best window. Stage two runs the reverse chain
    over the windows of the shortlist, the best contents, one a content, since windows of one recording, or copies of it,
    would share out the probability among themselves; the score becomes cosine + weight * x0_hat, with the weight and the shape
    (`scoring.fuse`) of the model's validation. Where that weight is 0, nothing is sampled. Files beyond the shortlist keep their
    cosine. Of a model with a prior of its candidates (`Reranker.offsets`) all cosines are corrected by it first. (A model trained
    by L_G alone has no weight; its shortlist is ranked by x0_hat, and nothing else is found.) Where the model is calibrated, a
    hit's score is what that sum is worth as a probability, and `present` comes from how far the generated distribution
    concentrates and how much it moves between draws.

    With `unwanted`, max(0, cosine to it) is subtracted from what files are ranked by, in both stages. Only the positive part:
    sounding unlike speech is no evidence for a dog, and would lift whatever is farthest from speech above the dogs. A calibrated
    hit still shows the probability that it matches the query, which the subtraction says nothing about, and `present` is None.

    Where the vectors stay in the tables (`Recordings.store`), all this is done over the contents that an approximate index finds
    nearest to the query, as many as the other stages look at, with their exact cosines.

    With a selection, files that it leaves out are not looked at, in any stage. Where names count, what a name adds is added to
    what its file is ranked by (`selection`); the score stays that of the sound. All that the sound alone would find is ranked,
    and beside it the files whose names bring them that far; `present` speaks of the sound alone.

    A hit's probability is never above `present`: that any file matches is at least as probable as that this one does.

    Args:
        queries: (Q, D) unit vectors, of texts or sounds.
        sampling: how x_0 is sampled; None is the model's own for folders (`sampling_of`). A query's hits depend on its seed,
            but, up to rounding, not on the queries beside it.
        tokens: of each query, for a model that re-ranks by frames (`token_states`); the recordings have their frames.
        unwanted: (D,) unit vector of what the hits should not sound like.
        refine: the queries are texts: run stage two with the text-to-audio denoiser, if the model has it. For queries that
            are sounds there is none.
        readings: of the queries, where they are texts (`read_queries`). Without them, or without the captions and sounds that the
            model learnt from, a calibration that goes by these is left aside, and scores are no probabilities.
        selections: for each query, which files may be found, and what their names add; None for all, by sound.
        top: hits a query at most.
        min_score: leave out hits that score less.

    Raises:
        UsageError: top below 1.
        Damaged: frames of the shortlist do not fit their checksums.
        ValueError: the model re-ranks by frames, and there are none, or no tokens.
    """
    check_top(top)
    calibration = retriever.calibration
    if refine and calibration and not can_judge(retriever, calibration.presence, read=readings is not None):
        calibration = None
    probability = calibration and (calibration.text_to_audio if refine else calibration.audio_to_audio)
    reranker = second_stage(retriever, "t2a") if refine else None
    sampling = sampling or sampling_of(retriever, folder=True)
    of_queries: Sequence[Reading | None] = readings or [None] * len(queries)
    if not len(recordings):
        return [Found([], None, calibrated=bool(probability), reading=each) for each in of_queries]
    judges = refine and calibration is not None and calibration.presence is not None
    deep = max(depth(reranker, sampling, top), sampling.shortlist or 0 if judges else 0)
    if recordings.store:
        how: dict[str, Any] = {"unwanted": unwanted, "refine": refine, "top": top, "min_score": min_score}
        results = []
        for number, query in enumerate(queries):
            part, selection = _part_for(recordings, query, deep, unwanted, selections[number] if selections else EVERYTHING)
            own_tokens = None if tokens is None else tokens.take(np.array([number]))
            own: dict[str, Any] = {
                "tokens": own_tokens,
                "readings": readings and readings[number : number + 1],
                "selections": [selection],
            }
            results += search(retriever, part, query[None], sampling, **own, **how)
        return results
    penalty = np.zeros(len(recordings.vectors), np.float32)
    with stage("cosine"):
        cosine = recordings.vectors @ queries.T.astype(np.float32)  # (W, Q)
        if unwanted is not None:
            penalty = np.maximum(0, recordings.vectors @ unwanted.astype(np.float32))
    results = []
    for number, (query, of_window, reading) in enumerate(zip(queries, cosine.T, of_queries, strict=True)):
        selection = selections[number] if selections else EVERYTHING
        allowed, bonus = selection.contents(recordings), selection.bonus(recordings, query)
        if allowed is not None and not allowed.any():
            results.append(Found([], None, calibrated=bool(probability), reading=reading))
            continue
        with stage("cosine"):
            ranked = of_window - penalty
            order, windows = best_windows(ranked, recordings.offsets, deep, allowed)
            if bonus is not None and (reranker is None or reranker.fuses):
                named = best_of_contents(recordings, bonus, selection.files)
                order, windows = _with_named(recordings, ranked, named, top, allowed, order, windows)
        scores, present = of_window[windows].astype(np.float64), None
        near = slice(sampling.shortlist)
        x0_hat = None
        if reranker and reranker.counts("t2a"):
            states = states_of(recordings, windows[near], tokens, number)
            x0_hat = sample_x0(retriever, "t2a", query, recordings.vectors[windows[near]], sampling, states=states)
        expected = reading.expected if reading else 0.0
        if judges and calibration:
            strangeness = reading.strangeness if reading else 0.0
            spread, many = distribution_of_cosines(scores[near]) if x0_hat is None else x0_hat, recordings.candidates
            heard = _heard(retriever, recordings.vectors[windows[[scores[near].argmax()]]], reading)
            present = calibration.present(presence_features(scores[near], spread, strangeness, expected, many, heard))
        if reranker:
            scores = final_scores(reranker, "t2a", scores, recordings.vectors[windows], x0_hat)
        ranked_by = scores - penalty[windows]
        if probability:
            words = len(normalise_caption(reading.text).split()) if reading else 1
            scores = of_known(probability, score_features(scores, present, expected, words, recordings.candidates))
        else:
            scores = ranked_by
        if unwanted is not None or (reading and reading.negation):
            present = None  # which tells of the query as it is written
        if probability and present is not None:
            scores = np.minimum(scores, present)
        files = _files(recordings, ranked_by, order, top, selection.files, bonus)
        by_sound = (
            {file for file, _ in _files(recordings, ranked_by, order, top, selection.files)} if bonus is not None else set()
        )
        by_name = selection.by == "name" and selection.names is not None
        hits: list[Hit] = []
        for file, i in files:
            score = float(selection.names[file] if by_name and selection.names is not None else scores[i])
            if min_score is None or score >= min_score:
                start, end = recordings.spans[windows[i]].tolist()
                by = _by(selection, file, file in by_sound)
                hits.append(Hit(len(hits) + 1, recordings.paths[file], start, end, score, by))
        if by_name:
            results.append(Found(hits, None, reading=reading))
            continue
        best = float(scores.max(initial=0)) if probability else 1.0
        verdict = _verdict(reading, present, best, calibration.told_below if calibration else 0.0)
        results.append(Found(hits, present, calibrated=bool(probability), verdict=verdict, reading=reading))
    return results


def _heard(retriever: Retriever, nearest: np.ndarray, reading: Reading | None) -> np.ndarray:
    """What `CaptionBank.heard` tells of a query and the window nearest to it (1, D), (2,); zeros where nothing is known."""
    if reading is None or reading.pooled is None or retriever.bank is None:
        return np.zeros(2)
    return np.asarray(retriever.bank.heard(nearest, reading.pooled[None])[0])


def _by(selection: Selection, file: int, by_sound: bool) -> By:
    """What a file was found by. `by_sound`: whether its sound alone would have brought it into the list."""
    if selection.names is None or not selection.names[file]:
        return "sound"
    return "both" if by_sound and selection.by == "both" else "name"


def _part_for(
    recordings: Recordings, query: np.ndarray, deep: int, unwanted: np.ndarray | None, selection: Selection
) -> tuple[Recordings, Selection]:
    """What is fetched of vectors that stay in the tables, for a query and its selection, and the selection among that."""
    assert recordings.store is not None
    besides = unit = None
    if selection.names is not None:
        unit = spread(recordings, query)
        called = np.where(True if selection.files is None else selection.files, selection.names, 0)
        besides = np.unique(recordings.content[first(called, np.arange(len(called)), deep)])
        besides = besides[best_of_contents(recordings, called, None)[besides] > 0]
    part = recordings.store.near(recordings, query, deep, unwanted, allowed=selection.contents(recordings), besides=besides)
    return part.recordings, selection.among(part.files, unit)


def _with_named(
    recordings: Recordings,
    ranked: np.ndarray,
    named: np.ndarray,
    top: int,
    allowed: np.ndarray | None,
    order: np.ndarray,
    windows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Contents and their best windows, with those behind them that what their names add, (C,), brings among the first `top`."""
    lifted = ranked + np.repeat(named, np.diff(recordings.offsets))
    other, other_windows = best_windows(lifted, recordings.offsets, top, allowed)
    new = ~np.isin(other, order)
    return np.concatenate([order, other[new]]), np.concatenate([windows, other_windows[new]])


def _verdict(reading: Reading | None, present: float | None, best: float, told_below: float) -> Verdict | None:
    """What `Found.verdict` is. `best`: the probability of the best candidate, 1 where scores are none."""
    if reading and reading.negation:
        return "negated"
    strangeness = reading.strangeness if reading and not reading.taught else 0.0
    if reading and reading.foreign:  # whatever it sounds like
        return "unknown"
    if present is None:
        return "unknown" if strangeness > PLAINLY else None
    if present >= told_below and best >= LEAST:
        return "found"
    return "unknown" if strangeness else "absent"


def search_texts(
    retriever: Retriever, recordings: Recordings, texts: Sequence[str], sampling: Sampling | None = None, **options: Any
) -> list[Found]:
    """`search` for texts as people write them, with what is known of each (`read_queries`), and its other arguments.

    Raises:
        UsageError: as `search` and `embed_texts`.
    """
    check_texts(texts)
    texts = [as_words(text) for text in texts]
    with stage("embed"):
        queries, pooled = retriever.embed_and_pool_text(texts)
    readings = read_queries(retriever, texts, pooled)
    how: dict[str, Any] = {"tokens": token_states(retriever, texts), "readings": readings, **options}
    return search(retriever, recordings, queries, sampling, **how)


def _files(
    recordings: Recordings,
    ranked_by: np.ndarray,
    order: np.ndarray,
    top: int,
    allowed: np.ndarray | None = None,
    bonus: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """The `top` best files, best first, of equal ones the earlier path, each with the place of its content in `order`.

    Args:
        allowed, bonus: (F,) which may be found, and what is added to what the content of each is ranked by.
    """
    lifted = ranked_by if bonus is None else ranked_by + best_of_contents(recordings, bonus, allowed)[order]
    files = [
        (-float(ranked_by[i] + (0 if bonus is None else bonus[file])), int(file), i)
        for i in first(lifted, order, top)
        for file in recordings.files_of(order[i])
        if allowed is None or allowed[file]
    ]
    return [(file, i) for _, file, i in sorted(files)[:top]]


def first(ranked_by: np.ndarray, order: np.ndarray, top: int) -> list[int]:
    """The places of the `top` highest, highest first; of equal ones that of the smaller `order` comes first."""
    return sorted(range(len(order)), key=lambda i: (-ranked_by[i], order[i]))[:top]


def check_top(top: int) -> None:
    """Raises UsageError below 1."""
    if top < 1:
        raise UsageError(f"top must be at least 1, got {top}")


def second_stage(retriever: Retriever, direction: Direction) -> Reranker | None:
    """The model's second stage where it has a part in the ranking: validation may have found that the cosine ranks no worse."""
    reranker = retriever.reranker
    return reranker if reranker and (reranker.counts(direction) or direction in reranker.priors) else None


def can_judge(retriever: Retriever, presence: Logistic | None, *, read: bool = True) -> bool:
    """Whether all is at hand that a fit of presence goes by: what the model learnt from, and what is `read` of a text that asks.

    Where it is not, the probabilities that stand on it are none.
    """
    if presence is None or not needs_captions(presence):
        return True
    bank = retriever.bank if read else None
    return bank is not None and (bank.sounds is not None or not needs_sounds(presence))


def depth(reranker: Reranker | None, sampling: Sampling, top: int) -> int:
    """How many candidates stage one hands on: those to re-rank, and, where their scores compare with cosines, those to show."""
    if reranker is None or sampling.shortlist is None:
        return top
    return max(top, sampling.shortlist) if reranker.fuses else sampling.shortlist


@stage("diffusion")
def sample_x0(
    retriever: Retriever,
    direction: Direction,
    query: np.ndarray,
    candidates: np.ndarray,
    sampling: Sampling,
    on_step: OnStep | None = None,
    states: States | None = None,
) -> np.ndarray:
    """Stage two for one query (D,) and N candidates (N, D): x0_hat of each noise draw, (S, N). Raises as `Reranker.draws`."""
    assert retriever.reranker is not None
    vectors = torch.from_numpy(query), torch.from_numpy(candidates)
    return retriever.reranker.draws(direction, *vectors, sampling, on_step, states).cpu().numpy()


def states_of(recordings: Recordings, rows: np.ndarray, tokens: Ragged | None, number: int) -> States | None:
    """What one of some texts meets in some windows; None where it has no tokens, which are of models that need none."""
    if tokens is None or recordings.frames is None:
        return None
    return States(tokens.take(np.array([number])), recordings.frames(rows))


def final_scores(
    reranker: Reranker, direction: Direction, cosine: np.ndarray, candidates: np.ndarray, x0_hat: np.ndarray | None
) -> np.ndarray:
    """The scores of N candidates (N, D) by their cosines (N,), and by x0_hat (S, n) of the first n, where it was sampled."""
    base = cosine - reranker.offsets(direction, torch.from_numpy(candidates)).double().numpy()
    return reranker.shortlist_scores(direction, base, None if x0_hat is None else x0_hat.mean(0))


@stage("embed")
def embed_texts(retriever: Retriever, texts: Sequence[str]) -> np.ndarray:
    """Texts as queries, (Q, D) unit vectors. Raises UsageError for a text without a letter or digit."""
    check_texts(texts)
    return retriever.embed_text([as_words(text) for text in texts])


def check_texts(texts: Sequence[str]) -> None:
    """Raises UsageError for a text without a letter or digit."""
    for text in texts:
        if not any(character.isalnum() for character in text):
            raise UsageError(f"nothing to search for in the text {text!r}: describe a sound, such as 'dog barking'")
