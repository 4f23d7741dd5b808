"""What every level of the chain is worth, as rows of texts: beside Figure 3."""

from __future__ import annotations

from ..evaluation.trajectory import TrajectoryResult
from .trajectory_figure import chosen

LEVEL_COLUMNS = (
    "k",
    "x_k in the attention, %",
    "p(true)",
    "entropy, nats",
    "R@1 of x_k",
    "R@1 of x0_hat",
    "R@1 of the final score",
)
SHOWN = 11  # levels


def level_rows(result: TrajectoryResult) -> list[tuple[str, ...]]:
    """A row for each of some levels, from noise to the answer."""
    rows = []
    for place in chosen(result.levels, SHOWN):
        at = result.measures[place]
        recalls = (f"{recall:.1f}" for recall in (at.r1_x, at.r1_x0_hat, at.r1_final))
        rows.append((str(at.level), f"{at.share_of_x:.1f}", f"{at.p_true:.3f}", f"{at.entropy:.3f}", *recalls))
    return rows


def level_caption(result: TrajectoryResult) -> str:
    """What has to be known beside them."""
    weight = "x0_hat alone" if result.weight is None else f"cosine + {result.weight:g} x0_hat"
    return (
        f"{result.recipe} seed {result.seed}, {result.queries:,} queries over {result.count:,} candidates, one noise draw; "
        f"R@1 of the cosine {result.r1_cosine:.1f}; the final score is {weight}."
    )
