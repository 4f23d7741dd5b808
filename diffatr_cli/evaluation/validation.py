"""What choices are made on: the validation split of the data set that a model learns from, and those of others beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.sight import States
from ..data.manifest import Clip, Dataset, load_dataset
from ..model import Retriever
from ..progress import Progress, silent
from ..recipe_schema import Recipe
from ..types import DIRECTIONS, Direction
from .earning import FusionTask, fusion_task
from .embedded_split import EmbeddedSplit, cached_split, check_fit
from .states import cached_states


@dataclass(frozen=True)
class Validation:
    """One validation split to choose by.

    Attributes:
        split: its embeddings.
        tasks: by direction, the queries that count.
        states: of its captions and clips, for a model whose candidates depend on the query.
    """

    split: EmbeddedSplit
    tasks: Mapping[Direction, FusionTask]
    states: States | None = None

    @classmethod
    def of(cls, split: EmbeddedSplit, clips: Sequence[Clip], same_captions: str, states: States | None = None) -> Validation:
        """Of these clips; `same_captions` as in `fusion_task`."""
        return cls(split, {direction: fusion_task(split, direction, clips, same_captions) for direction in DIRECTIONS}, states)


def validation_sets(dataset: Dataset, recipe: Recipe) -> list[Dataset]:
    """The data sets whose validation splits choose: the one learnt from, and then the `evaluation.domains` beside it.

    Raises:
        DiffATRError: one of those is not prepared.
    """
    others = (load_dataset(dataset.root.parent, name) for name in recipe.evaluation.domains if name != dataset.name)
    return [dataset, *others]


def validations(
    model: Retriever, run: Path, datasets: Sequence[Dataset], recipe: Recipe, states: bool = False, progress: Progress = silent
) -> list[Validation]:
    """The validation splits of some data sets by the encoders of a run, from the caches in their folder or computed into them.

    Args:
        states: with token states and frames.

    Raises:
        UsageError: a data set is not of what the model takes.
    """
    same, found = recipe.data.same_captions, []
    for dataset in datasets:
        check_fit(model, dataset)
        split = cached_split(model, run, dataset, "val", same, progress)
        seen = cached_states(model, run, dataset, "val", progress) if states else None
        found.append(Validation.of(split, dataset.split("val"), same, seen))
    return found
