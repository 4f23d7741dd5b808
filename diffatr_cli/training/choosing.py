"""What validation chooses of trained denoisers: the priors of the candidates, and how x0_hat joins the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..core.querybank import Prior
from ..core.sampling import Sampling
from ..core.scoring import Reranker
from ..data.manifest import Dataset
from ..evaluation.choose_fusion import Fusion, choose_fusion
from ..evaluation.embedded_split import cached_split
from ..evaluation.validation import validations
from ..model import Retriever
from ..phase_two import facts_of, fusion_facts, tensors_of
from ..processes import from_first
from ..progress import Progress
from ..recipe_schema import Recipe
from ..runs import Encoders
from ..types import DIRECTIONS, Direction
from .choose_prior import bank_of, choose_prior
from .denoisers import DenoiserPair
from .phase_folder import PhaseFolder


class Choosing:
    """The validation splits of a run, and the priors that they earned. Called with denoisers, it chooses their fusions.

    Attributes:
        priors: by direction; none where the recipe asks for none, or none was earned.
    """

    def __init__(
        self,
        first: Encoders,
        retriever: Retriever,
        recipe: Recipe,
        datasets: Sequence[Dataset],
        seed: int,
        progress: Progress,
    ) -> None:
        """Of `datasets` (`validation.validation_sets`) the first is the one learnt from. `seed` draws the bank's queries."""
        self._encoders, self._recipe = first.check(), recipe
        states = recipe.diffusion.conditioning != "none"
        self._splits = validations(retriever, first.run, datasets, recipe, states, progress)
        self._sampling = Sampling.of(recipe, seed=seed)
        self.priors: dict[Direction, Prior] = {}
        if size := recipe.evaluation.bank:
            learnt = cached_split(retriever, first.run, datasets[0], "train", recipe.data.same_captions, progress)
            for direction in DIRECTIONS:
                chosen = from_first(choose_prior(self._splits, direction, bank_of(learnt, direction, size, seed)))
                if chosen.prior is not None:
                    self.priors[direction] = chosen.prior

    def __call__(self, pair: DenoiserPair) -> dict[Direction, Fusion]:
        """The fusions that some denoisers earn. They are in evaluation mode then."""
        section, conditioners = self._recipe.evaluation, pair.conditioners_by_direction()
        denoisers = pair.eval().by_direction()
        reranker = Reranker(denoisers, pair.schedule, self._sampling, {}, conditioners=conditioners, priors=self.priors)
        offered = section.fusion_weights, section.fusion_shapes
        return {d: from_first(choose_fusion(self._splits, d, reranker, *offered)) for d in DIRECTIONS}

    def keep(self, folder: PhaseFolder, tensors: dict[str, Any], best: dict[str, dict[str, Any]]) -> None:
        """Keep the tensors of denoisers, with the priors and what was chosen of each direction, as the phase's best."""
        facts = {"best": best, "encoders": self._encoders, "priors": facts_of(self.priors)} | fusion_facts(best)
        folder.keep_best(tensors | tensors_of(self.priors), facts)


def row_of(fusions: dict[Direction, Fusion]) -> dict[str, Any]:
    """What the log says of an epoch's fusions."""
    row: dict[str, Any] = {}
    for direction, fusion in fusions.items():
        row |= {f"{direction}_{key}": fusion.metrics[key] for key in ("map", "r1", "r5", "r10")}
        row |= {f"{direction}_weight": fusion.weight, f"{direction}_shape": fusion.shape, f"{direction}_worth": fusion.worth}
    return row


def best_of(fusion: Fusion, epoch: int) -> dict[str, Any]:
    """What is kept of the fusion of a direction's best epoch."""
    return {"epoch": epoch} | {key: value for key, value in asdict(fusion).items() if key != "metrics"}
