"""What the chain does between noise and answer: the paper's Figure 3 for one query, and measures of a whole split at every level.

Q queries, N candidates, S candidates shown, L levels visited, K length of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.algebra import PreparedCandidates
from ..core.chain import OnStep
from ..core.losses import cosine_similarity
from ..core.ragged import Ragged
from ..core.sampling import Sampling
from ..core.scoring import Reranker, diffusion_score_blocks, shortlisted
from ..core.sight import Sight
from ..core.text import normalise_caption
from ..data.manifest import load_dataset
from ..errors import UsageError
from ..model import Retriever, load_retriever, sampling_of
from ..progress import Progress, silent
from ..runs import find_runs, run_folder, seeds_of
from ..types import Direction
from .embedded_split import Captions, EmbeddedSplit, cached_split, check_fit
from .states import cached_states

SHOWN = 24  # candidates of the one query that are shown, the nearest by cosine, beside the true ones
BLOCK_ENTRIES = 2**22  # of the (queries, candidates) arrays that are held at a level


@dataclass(frozen=True)
class LevelMeasures:
    """Means over the queries of a split at noise level k, from the same noise draw at all levels.

    Attributes:
        level: k, from K, where x_k is noise, to 1.
        share_of_x: of the attention's variance over the candidates, Q K^T and x_k apart, what x_k has, percent.
        p_true: probability that x0_hat, the denoiser's answer to x_k, gives the true candidates, from 0 to 1.
        entropy: of x0_hat, nats; log N says that it prefers nothing.
        r1_x: R@1 of ranking by x_k itself, percent.
        r1_x0_hat: R@1 of ranking by x0_hat alone, percent.
        r1_final: R@1 of the final score with this x0_hat, percent.
    """

    level: int
    share_of_x: float
    p_true: float
    entropy: float
    r1_x: float
    r1_x0_hat: float
    r1_final: float


@dataclass(frozen=True)
class ShownCandidate:
    """One candidate of the query that is shown: its clip, its caption where candidates are captions, and whether it is true."""

    clip: str
    caption: str | None
    cosine: float
    true: bool


@dataclass(frozen=True, kw_only=True)
class TrajectoryResult:
    """One query's way from noise to answer, and the split's.

    Attributes:
        query: the text, or the id of the clip that asks.
        candidates: S, the nearest by cosine first.
        count: N, of all that were sampled over.
        chain: K.
        levels: L noise levels k as visited, from K to 1.
        x: (L, S), x_k of the query.
        x0_hat: (L, S), the denoiser's answer to each x_k. The last row is x_0.
        measures: L, over all queries.
        queries: Q.
        r1_cosine: R@1 of the cosine alone, percent.
        weight: of x0_hat beside the cosine in the final score; None where it stands alone.
    """

    source: str
    target: str
    split: str
    recipe: str
    seed: int
    noise_seed: int
    direction: Direction
    query: str
    candidates: tuple[ShownCandidate, ...]
    count: int
    chain: int
    levels: tuple[int, ...]
    x: np.ndarray
    x0_hat: np.ndarray
    measures: tuple[LevelMeasures, ...]
    queries: int
    r1_cosine: float
    weight: float | None

    def to_json(self) -> dict[str, Any]:
        """The document of `trajectory --json`: x and x0_hat of each candidate as lists beside `levels`."""
        plain = {name: getattr(self, name) for name in ("source", "target", "split", "recipe", "seed", "noise_seed", "direction")}
        shown = [
            asdict(each) | {"x": self.x[:, i].tolist(), "x0_hat": self.x0_hat[:, i].tolist()}
            for i, each in enumerate(self.candidates)
        ]
        return plain | {
            "chain": self.chain,
            "levels": list(self.levels),
            "query": {"query": self.query, "candidates_in_all": self.count, "candidates": shown},
            "queries": self.queries,
            "weight": self.weight,
            "r1_cosine": self.r1_cosine,
            "measures": [asdict(each) for each in self.measures],
        }


def trajectory(
    source: str,
    target: str,
    *,
    data: Path,
    runs: Path,
    direction: Direction = "t2a",
    query: str | None = None,
    item: str | None = None,
    recipe: str | None = None,
    seed: int | None = None,
    split: str = "test",
    noise_seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> TrajectoryResult:
    """Follow one query and a whole split from x_K to x_0, over all candidates and with the first noise draw.

    A model that re-ranks by frames goes over the shortlist of each query, of which alone its candidates are seen: what is not
    listed has no x_k, and an x0_hat of zero.

    Args:
        query: a text that asks for clips. Where it is a caption of the split, its clips are the true candidates; of any other
            text none is known.
        item: the id of a clip: it asks for its captions, or its first caption asks for it. Neither takes the first clip.
        recipe, seed: which run, where several learnt from `source`; the lowest seed if None.

    Raises:
        UsageError: no such run, seed or clip, a text without words or one that asks for texts, or a model that has no chain.
        DiffATRError: the data set is not prepared, or a checkpoint does not fit.
    """
    if query is not None and (item is not None or direction == "a2t"):
        raise UsageError("--query: a text asks for clips; with --direction a2t, or instead of it, name a clip with --item ID.")
    folder = find_runs(runs, source, recipe=recipe)
    trained = seeds_of(folder)
    if not trained or seed not in (None, *trained):
        raise UsageError(f"{folder}: seed {seed or 0} was not trained, only {trained}. Train it, or name another with --seed.")
    seed = trained[0] if seed is None else seed
    run = run_folder(runs, folder.name, seed)
    model = load_retriever(run, device)
    reranker, sampling = _chain_of(model, noise_seed)
    dataset = load_dataset(data, target)
    check_fit(model, dataset)
    clips = dataset.split(split)
    ids, captions = [clip.clip_id for clip in clips], Captions.of(clips)
    asked = _asked(ids, captions, direction, query, item)
    embedded = cached_split(model, run, dataset, split, progress=progress)
    queries, candidates, relevant = embedded.task(direction)
    if asked is None:
        assert query is not None
        if not normalise_caption(query):
            raise UsageError("--query: has no word in it.")
        vector, row, true = torch.from_numpy(model.embed_text([query])), 0, np.zeros(0, int)
    else:
        row = asked[0]
        vector, true = queries[row : row + 1], np.unique(np.concatenate([relevant[each] for each in asked]))
    states = cached_states(model, run, dataset, split, progress) if model.sees_frames else None
    sight = own_sight = reranker.sight(direction, states)
    if states is not None and asked is None:
        own_sight = reranker.sight(direction, states._replace(tokens=Ragged.of(model.token_states([query or ""]))), [0])
    elif sight is not None:
        own_sight = sight.of(slice(row, row + 1))
    levels, x, x0_hat, listed = _follow(vector, candidates, direction, reranker, sampling, row, own_sight)
    cosine = cosine_similarity(vector, candidates)[0].numpy()
    order = np.array([each for each in np.argsort(-cosine, kind="stable") if listed[each]])
    shown = np.concatenate([order[:SHOWN], [each for each in order[SHOWN:] if each in true]]).astype(int)
    measures, r1_cosine = measure_levels(embedded, direction, reranker, sampling, progress, sight)
    return TrajectoryResult(
        source=source,
        target=target,
        split=split,
        recipe=folder.name,
        seed=seed,
        noise_seed=noise_seed,
        direction=direction,
        query=query or (ids[row] if direction == "a2t" else captions.texts[row]),
        candidates=tuple(
            ShownCandidate(
                ids[captions.clip_index[i]] if direction == "a2t" else ids[i],
                captions.texts[i] if direction == "a2t" else None,
                float(cosine[i]),
                bool(i in true),
            )
            for i in shown.tolist()
        ),
        count=int(listed.sum()),
        chain=len(reranker.schedule),
        levels=tuple(levels),
        x=x[:, shown],
        x0_hat=x0_hat[:, shown],
        measures=tuple(measures),
        queries=len(queries),
        r1_cosine=r1_cosine,
        weight=reranker.fusion_weights.get(direction),
    )


def _chain_of(model: Retriever, noise_seed: int) -> tuple[Reranker, Sampling]:
    """A model's denoisers, and how they sample from one noise draw: over everything, or, of one that re-ranks by frames, over the
    shortlist of each query. Raises UsageError where there is no chain."""
    if model.reranker is None:
        raise UsageError(f"{model.name}: has no diffusion phase, so there is no way from noise to an answer to show.")
    own = sampling_of(model, seed=noise_seed, folder=model.sees_frames)  # frames are met by a shortlist alone
    sampling = replace(own, shortlist=own.shortlist if model.sees_frames else None, draws=1)
    if not sampling.noise:
        raise UsageError(f"{model.name}: was trained without diffusion, so there is no way from noise to an answer to show.")
    if sampling.x0 != "softmax":
        raise UsageError(f"{model.name}: samples with diffusion.x0={sampling.x0}, which makes no distributions to show.")
    return model.reranker, sampling


def _asked(ids: Sequence[str], captions: Captions, direction: Direction, query: str | None, item: str | None) -> list[int] | None:
    """The rows among the queries of a split that are asked for, the first of which asks; None for a text that is none of them."""
    if query is not None:
        text = normalise_caption(query)
        return [row for row, caption in enumerate(captions.texts) if normalise_caption(caption) == text] or None
    clip = 0 if item is None else next((i for i, each in enumerate(ids) if each == item), None)
    if clip is None:
        raise UsageError(f"--item: there is no clip {item} in this split; its clips are {', '.join(ids[:3])}, ...")
    return [clip if direction == "a2t" else int(captions.first[clip])]


def _follow(
    query: Tensor,
    candidates: Tensor,
    direction: Direction,
    reranker: Reranker,
    sampling: Sampling,
    query_id: int,
    sight: Sight | None,
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """One query (1, D): the noise levels k visited, at each x_k and x0_hat, (L, N), and which are sampled over, (N,) bool."""
    levels: list[int] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(level: int, x: Tensor, x0_hat: Tensor) -> None:
        levels.append(level + 1)
        seen.append((x[0], x0_hat[0]))

    prepared = reranker.prepare(direction, candidates)
    _sample(query, prepared, reranker, sampling, [query_id], keep, sight, _listed(query, prepared, sampling, sight))
    x, x0_hat = (torch.stack(column).float().numpy() for column in zip(*seen, strict=True))
    return levels, x, x0_hat, np.isfinite(x[0])


def measure_levels(
    split: EmbeddedSplit,
    direction: Direction,
    reranker: Reranker,
    sampling: Sampling,
    progress: Progress = silent,
    sight: Sight | None = None,
) -> tuple[list[LevelMeasures], float]:
    """The measures of every level that is visited, in that order, and R@1 of the cosine alone (percent), over all queries.

    Ties count by their expectation, as in `core.metrics`.
    """
    queries, candidates, relevant = split.task(direction)
    prepared, offsets = reranker.prepare(direction, candidates), reranker.offsets(direction, candidates)
    sums: dict[int, np.ndarray] = {}
    by_cosine = 0.0
    of_query = max(1, len(candidates), sight.entries(min(sampling.shortlist or len(candidates), len(candidates))) if sight else 0)
    rows = max(1, BLOCK_ENTRIES // of_query)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        cosine = cosine_similarity(queries[block], candidates)
        true = torch.zeros(cosine.shape, dtype=torch.bool)
        for i, each in enumerate(relevant[block]):
            true[i, each] = True

        of_block = sight and sight.of(block)
        listed = _listed(queries[block], prepared, sampling, of_block)
        seen = _seen(prepared, of_block, listed)

        def measure(
            level: int,
            x: Tensor,
            x0_hat: Tensor,
            block: slice = block,
            cosine: Tensor = cosine,
            true: Tensor = true,
            listed: Tensor | None = listed,
            seen: Tensor = seen,
        ) -> None:
            x, x0_hat = x.to(cosine), x0_hat.to(cosine)
            share = 100 * _share_of_x(queries[block], seen, prepared, level, x if listed is None else x.gather(1, listed.cpu()))
            final = reranker.final_score(direction, cosine - offsets, x0_hat)
            entropy = torch.special.entr(x0_hat).sum(1)
            found = [share, (x0_hat * true).sum(1), entropy, *(100 * _first_is_true(each, true) for each in (x, x0_hat, final))]
            totals = np.array([column.double().sum().item() for column in found])
            sums[level] = sums.get(level, 0) + totals

        by_cosine += 100 * _first_is_true(cosine, true).double().sum().item()
        _sample(queries[block], prepared, reranker, sampling, range(block.start, block.stop), measure, of_block, listed)
        progress(block.stop, len(queries), f"every level, {direction}")
    measures = [LevelMeasures(level + 1, *(total / len(queries)).tolist()) for level, total in sums.items()]
    return measures, by_cosine / len(queries)


def _listed(queries: Tensor, prepared: PreparedCandidates, sampling: Sampling, sight: Sight | None) -> Tensor | None:
    """(Q, S) the places of each query's shortlist, for a model that re-ranks by frames; None where all are sampled over."""
    (candidates,) = prepared.candidates
    return None if sight is None else shortlisted(queries.to(candidates), candidates, sampling.shortlist)


def _seen(prepared: PreparedCandidates, sight: Sight | None, listed: Tensor | None) -> Tensor:
    """The candidates that queries are sampled over: (N, D) of all, or (Q, S, D) of each query's shortlist as it sees them."""
    (candidates,) = prepared.candidates
    return candidates if sight is None or listed is None else sight(slice(None), listed, candidates[listed])[0]


def _share_of_x(queries: Tensor, seen: Tensor, prepared: PreparedCandidates, level: int, x: Tensor) -> Tensor:
    """(Q,) of the variance over the candidates of Q K^T and of x_k, which the attention adds up, the part that x_k has."""
    factors = prepared.factors
    attended = factors.attend(queries.to(seen) + factors.embed_level(torch.full((1,), level, device=seen.device)))
    logits = (attended @ seen.T if seen.ndim == 2 else (seen @ attended[:, :, None]).squeeze(2)).to(x)
    of_x = x.var(1, correction=0)
    return of_x / (of_x + logits.var(1, correction=0)).clamp_min(1e-30)


def _first_is_true(scores: Tensor, true: Tensor) -> Tensor:
    """(Q,) the probability that the first of each query's candidates is a true one when ties are broken at random: R@1."""
    best = scores == scores.amax(1, keepdim=True)
    return (best & true).sum(1) / best.sum(1)


def _sample(
    queries: Tensor,
    prepared: PreparedCandidates,
    reranker: Reranker,
    sampling: Sampling,
    query_ids: Sequence[int],
    on_step: OnStep,
    sight: Sight | None,
    listed: Tensor | None,
) -> None:
    """Go through the chain once with all these queries for what `on_step` sees there: of all candidates, (Q, N) on the CPU.

    Those that are not in a query's shortlist have an x_k of minus infinity and an x0_hat of zero.
    """
    n = prepared.candidates.shape[1]

    def of_all(level: int, x: Tensor, x0_hat: Tensor) -> None:
        if listed is not None:
            x = x.new_full((len(x), n), -torch.inf).scatter_(1, listed, x)
            x0_hat = x0_hat.new_zeros(len(x), n).scatter_(1, listed, x0_hat)
        on_step(level, x.cpu().clone(), x0_hat.cpu().clone())  # the sampler goes on in the same memory

    how: dict[str, Any] = {"query_ids": query_ids, "chunk": max(1, len(queries)), "on_step": of_all, "sight": sight}
    for _ in diffusion_score_blocks(queries, prepared, reranker.schedule, sampling, **how):
        pass
