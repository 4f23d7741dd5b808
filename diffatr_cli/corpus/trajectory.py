"""How the answer to a text comes out of noise: the paper's Figure 3, for one query and its shortlist.

W windows, S files of the shortlist, L levels visited, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..core.windows import best_windows
from ..errors import UsageError
from ..model import sampling_of
from .index import Recordings
from .search import sample_x0, states_of

if TYPE_CHECKING:
    from ..core.ragged import Ragged
    from ..core.sampling import Sampling
    from ..model import Retriever


@dataclass(frozen=True)
class Trajectory:
    """What the sampler held at every level, from noise to answer.

    Attributes:
        paths: S paths below the folder, best cosine first, which is the sampler's own order; of equal contents the first.
        windows: (S,) the row in `Recordings` of each file's best window.
        levels: L indices of noise levels, falling; 0 is the last.
        x: (L, S) float32, x_k of the first noise draw.
        x0_hat: (L, S) float32, the distribution that the denoiser sees in x_k, the mean over the model's noise draws; the last
            row is what a search fuses.
    """

    paths: list[str]
    windows: np.ndarray
    levels: list[int]
    x: np.ndarray
    x0_hat: np.ndarray


def trajectory(
    retriever: Retriever,
    recordings: Recordings,
    query: np.ndarray,
    sampling: Sampling | None = None,
    tokens: Ragged | None = None,
) -> Trajectory:
    """Run stage two of `search.search` once more for one text, with the same candidates and the same noise, and keep each step.

    Args:
        query: (D,) unit vector of a text.
        sampling: as in `search`.
        tokens: of that text, as in `search`.

    Raises:
        UsageError: the model has no denoisers.
        Damaged, ValueError: as `search`.
    """
    if retriever.reranker is None:
        raise UsageError("this model has no diffusion phase, so there is no way from noise to an answer to show")
    sampling = sampling or sampling_of(retriever, folder=True)
    if not len(recordings):
        return Trajectory([], np.zeros(0, np.int64), [], np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))
    rows = np.arange(len(recordings.spans))
    if recordings.store:
        recordings, rows, _ = recordings.store.near(recordings, query, sampling.shortlist or len(recordings))
    cosine = recordings.vectors @ query.astype(np.float32)  # (W,)
    order, windows = best_windows(cosine, recordings.offsets, sampling.shortlist or len(recordings))
    levels: list[int] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(level: int, x: Tensor, x0_hat: Tensor) -> None:
        levels.append(level)
        seen.append((x[0].cpu().clone(), x0_hat.mean(0).cpu()))  # the sampler goes on in the same memory

    sample_x0(retriever, "t2a", query, recordings.vectors[windows], sampling, keep, states_of(recordings, windows, tokens, 0))
    x, x0_hat = (torch.stack(column).float().numpy() for column in zip(*seen, strict=True))
    paths = [recordings.paths[recordings.files_of(content)[0]] for content in order]
    return Trajectory(paths, rows[windows], levels, x, x0_hat)
