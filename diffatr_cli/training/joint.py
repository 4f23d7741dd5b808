"""Encoders and denoisers trained together (strategy `joint`): how they are validated, and kept as two phases are.

A joint training leaves what both phases leave: encoders in `pretrain/`, denoisers with their weights and their calibration in
`diffusion/`. So whatever uses a model of both phases uses one of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_weights
from ..core.sampling import Sampling
from ..core.scoring import Reranker
from ..data.manifest import Clip, Dataset
from ..device import wants_bf16
from ..evaluation.choose_fusion import choose_fusion
from ..evaluation.embedded_split import EmbeddedSplit, recall_sum
from ..evaluation.ranking import rank
from ..evaluation.validation import Validation
from ..phase_two import below, fusion_facts
from ..processes import from_first
from ..progress import Progress
from ..recipe_schema import EvaluationSection, Recipe
from ..runs import BEST, FIRST_PHASE, SECOND_PHASE, Encoders
from ..types import DIRECTIONS
from .calibrate_phase import calibrate_phase
from .denoisers import DenoiserPair
from .phase_folder import open_phase


def validate_joint(
    val: EmbeddedSplit,
    clips: Sequence[Clip],
    same_captions: str,
    denoisers: DenoiserPair,
    sampling: Sampling,
    section: EvaluationSection,
) -> dict[str, Any]:
    """The log's row of an epoch: R@1/5/10 of cosine and x0_hat together, by the weight that validation chooses, and `score`.

    Beside them the cosine's own R@1, and the weight, its form and its worth (`choose_fusion.Fusion`), for each direction.

    Args:
        val: the validation split by the encoders as they are, of these `clips`.
        denoisers: in evaluation mode.
        section: what may be chosen from.
    """
    plain = Reranker(denoisers.by_direction(), denoisers.schedule, sampling, {})
    offered = section.fusion_weights, section.fusion_shapes
    splits = [Validation.of(val, clips, same_captions)]
    chosen = {d: from_first(choose_fusion(splits, d, plain, *offered)) for d in DIRECTIONS}
    fusion = {d: each.weight for d, each in chosen.items()}, {d: each.shape for d, each in chosen.items()}
    reranker = Reranker(denoisers.by_direction(), denoisers.schedule, sampling, *fusion)
    ranked = {direction: rank(val, direction, reranker) for direction in DIRECTIONS}
    row: dict[str, Any] = {f"{d}_{key}": ranked[d]["diff"][key] for d in DIRECTIONS for key in ("r1", "r5", "r10")}
    for direction, each in chosen.items():
        row |= {f"{direction}_cosine_r1": ranked[direction]["baseline"]["r1"], f"{direction}_worth": each.worth}
        row |= {f"{direction}_weight": each.weight, f"{direction}_shape": each.shape}
    return row | {"score": sum(recall_sum(each["diff"]) for each in ranked.values())}


def keep_as_two_phases(
    run: Path, recipe: Recipe, dataset: Dataset, seed: int, device: torch.device, command: str, progress: Progress
) -> None:
    """Keep the denoisers of a finished joint training where phase two's are, and fit what its scores are worth; once.

    Args:
        run: the seed folder, whose `pretrain/` holds the best model of the training.
        command: that does this, for the record.

    Raises:
        UsageError: the folder holds the phase two of other encoders.
    """
    first = Encoders(run)
    checkpoint = first.check()
    sections = FIRST_PHASE + SECOND_PHASE
    with open_phase(run, "diffusion", recipe, sections, seed, command, f"{dataset.fingerprint} {checkpoint}") as folder:
        if not from_first((folder.path / BEST).is_file()):
            tensors, facts = load_weights(first.folder / BEST)
            best = _by_direction(facts["best"])
            folder.record_start(device, "bf16" if wants_bf16(recipe.diffusion.precision, device) else "fp32", 0)
            folder.keep_best(below("denoisers.", tensors), {"best": best, "encoders": checkpoint} | fusion_facts(best))
        calibrate_phase(run, first, recipe, dataset, seed, device, folder, progress)


def _by_direction(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {d: {"epoch": row["epoch"]} | {key: row[f"{d}_{key}"] for key in ("weight", "shape", "worth")} for d in DIRECTIONS}
