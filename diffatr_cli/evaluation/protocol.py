"""The protocols by which different people count, each under a name. `docs/metrics.md` explains them side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UsageError
from ..types import DIRECTIONS, Direction

if TYPE_CHECKING:
    from ..core.metrics import Measure

Relevance = Literal["own", "shared", "file"]
"""What a query is to find: its own clip or captions; those of every clip that shares a caption too; or what a file lists."""


@dataclass(frozen=True)
class Protocol:
    """What counts as found, and how it is counted.

    Attributes:
        name: as `evaluate --protocol` takes it.
        summary: what is particular about it, in a few words below a table.
        directions: those that it knows.
        relevance: which candidates a query is to find.
        ap_cutoff: k of mAP@k; None takes the whole ranking.
        share: R@k is the share of the relevant candidates found, and not whether one is.
    """

    name: str
    summary: str
    directions: tuple[Direction, ...] = DIRECTIONS
    relevance: Relevance = "own"
    ap_cutoff: int | None = 10
    share: bool = False

    @property
    def measure(self) -> Measure:
        """Its definitions of the metrics."""
        from ..core.metrics import Measure

        return Measure(self.ap_cutoff, self.share)


_ALL = (
    Protocol("paper", "a2t ranks by the best of a clip's captions"),
    Protocol(
        "all-captions",
        "protocol all-captions: R@k is the share of the relevant found, mAP is over the whole ranking",
        ap_cutoff=None,
        share=True,
    ),
    Protocol("dcase2024", "protocol dcase2024: a caption is to find its one clip", directions=("t2a",)),
    Protocol(
        "dcase2025",
        "protocol dcase2025: a caption is to find the clips that the relevance file lists for it",
        directions=("t2a",),
        relevance="file",
        ap_cutoff=16,
    ),
    Protocol(
        "shared",
        "protocol shared: a caption that several clips share counts for any of them; a2t ranks by the best of a clip's captions",
        relevance="shared",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
PAPER = "paper"


def protocol_named(name: str) -> Protocol:
    """The protocol of this name. Raises UsageError if there is none."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol: {name!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
