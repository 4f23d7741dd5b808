"""From a recipe to what phase two trains, and from a run to what it left: the reranker, and captions learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import fill, load_weights, save_weights
from .core.bank import CaptionBank, LearntSounds
from .core.calibration import Calibration
from .core.denoiser import AttentionDenoiser, DenoiserConfig
from .core.query_conditioned import QueryConditioner
from .core.querybank import Prior
from .core.sampling import Sampling
from .core.schedule import NoiseSchedule
from .core.scoring import Reranker
from .errors import DiffATRError
from .recipe_schema import DiffusionSection, ModelSection, Recipe
from .runs import BEST, Encoders
from .types import DIRECTIONS, Direction

CONDITIONERS = "conditioner."
"""What the names of conditioners' tensors begin with in phase two's checkpoint."""
PRIORS = "prior."
"""The same of what candidates' priors stand on."""
BANK = "captions.safetensors"
"""The captions and sounds learnt from, in the folder of phase two, which judges queries by them."""


def build_denoiser(model: ModelSection, section: DiffusionSection, generator: torch.Generator | None = None) -> AttentionDenoiser:
    """One denoiser of a recipe; either direction's. The fields of `DenoiserConfig` have the same names in the recipe."""
    settings = model.model_dump() | section.model_dump()
    return AttentionDenoiser(**{field.name: settings[field.name] for field in fields(DenoiserConfig)}, generator=generator)


def build_schedule(section: DiffusionSection) -> NoiseSchedule:
    """The noise schedule of a recipe."""
    make = NoiseSchedule.cosine if section.schedule == "cosine" else NoiseSchedule.linear
    return replace(make(section.steps), x0_scale=section.x0_scale)


def build_conditioners(
    model: ModelSection, section: DiffusionSection, feature_sizes: tuple[int, int] | None
) -> dict[Direction, QueryConditioner]:
    """What makes candidates depend on the query, of each direction; empty for a recipe whose candidates do not.

    Args:
        feature_sizes: F of the encoders, of sounds and of captions.

    Raises:
        ValueError: the recipe needs them, and they are not known.
    """
    if section.conditioning == "none":
        return {}
    if feature_sizes is None:
        raise ValueError("candidates as the query sees them need the sizes of frames and token states")
    of_frames, of_tokens = feature_sizes
    return {direction: QueryConditioner(of_tokens, of_frames, model.dim) for direction in DIRECTIONS}


def load_reranker(
    run: Path,
    first: Encoders,
    recipe: Recipe,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    weights: str,
    feature_sizes: tuple[int, int],
    device: torch.device,
) -> tuple[Reranker | None, Calibration | None]:
    """The denoisers of phase two, or, where the strategy is L_G alone, those that phase one's checkpoint holds; and what their
    scores are worth.

    Args:
        first: the encoders, with the tensors and facts of their checkpoint, and its hash `weights`.
        feature_sizes: as in `build_conditioners`.
    """
    path, inside = first.folder / BEST, "denoisers."
    if recipe.model.strategy != "gen":
        path, inside = run / "diffusion" / BEST, ""
        if not path.is_file():
            return None, None
        tensors, facts = load_weights(path)
        if facts["encoders"] != weights:
            raise DiffATRError(f"{path}: was trained on other encoders than {first.folder} holds now. Run train-diffusion again.")
    denoisers = {direction: build_denoiser(recipe.model, recipe.diffusion) for direction in DIRECTIONS}
    conditioners = build_conditioners(recipe.model, recipe.diffusion, feature_sizes)
    fill_denoisers(denoisers, conditioners, tensors, path, inside)
    for module in (*denoisers.values(), *conditioners.values()):
        module.to(device).eval()
    fitted = facts.get("calibration")
    schedule = build_schedule(recipe.diffusion)
    fusion = facts["fusion_weights"], facts.get("fusion_shapes")
    queries = below(PRIORS, tensors)
    priors = {d: Prior(queries[d].float().to(device), **settings) for d, settings in facts.get("priors", {}).items()}
    reranker = Reranker(denoisers, schedule, Sampling.of(recipe), *fusion, conditioners, priors)
    return reranker, Calibration.from_json(fitted) if fitted else None


def fill_denoisers(
    denoisers: Mapping[Direction, AttentionDenoiser],
    conditioners: Mapping[Direction, QueryConditioner],
    tensors: dict[str, Tensor],
    path: Path,
    inside: str = "",
) -> None:
    """Take the tensors of a checkpoint, read from `path`, that has the denoisers' names below `inside`.

    Raises:
        DiffATRError: they do not fit.
    """
    for direction, denoiser in denoisers.items():
        fill(denoiser, below(f"{inside}{direction}.", tensors), path)
    for direction, conditioner in conditioners.items():
        fill(conditioner, below(f"{CONDITIONERS}{direction}.", tensors), path)


def tensors_of(priors: Mapping[Direction, Prior]) -> dict[str, Tensor]:
    """What phase two's checkpoint holds of priors: their queries, in half precision."""
    return {f"{PRIORS}{direction}": prior.queries.half() for direction, prior in priors.items()}


def facts_of(priors: Mapping[Direction, Prior]) -> dict[Direction, dict[str, float]]:
    """What its facts hold of them."""
    return {direction: {"beta": prior.beta, "weight": prior.weight} for direction, prior in priors.items()}


def fusion_facts(best: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What they hold of how x0_hat joins the cosine: of each direction's best epoch its `weight` and `shape`."""
    return {f"fusion_{name}s": {direction: best[direction][name] for direction in DIRECTIONS} for name in ("weight", "shape")}


def save_bank(folder: Path, bank: CaptionBank, encoders: str) -> None:
    """Keep what a model learnt from, captions and sounds, in half precision. `encoders`: the id of what their vectors are of."""
    facts = {"encoders": encoders, "texts": list(bank.texts), "familiar": bank.familiar}
    tensors = {"vectors": torch.from_numpy(bank.vectors).half()}
    if bank.worth is not None:
        tensors["worth"] = torch.from_numpy(bank.worth).float()
    if bank.sounds is not None:
        tensors |= {"sounds": torch.from_numpy(bank.sounds.vectors).half(), "said": torch.from_numpy(bank.sounds.captions).int()}
    save_weights(folder / BANK, tensors, facts)


def load_bank(folder: Path, encoders: str) -> CaptionBank | None:
    """What `save_bank` kept; None where there is none, or where it is of other encoders than the model's.

    Raises:
        DiffATRError: the file is damaged.
    """
    path = folder / BANK
    if not path.is_file():
        return None
    tensors, facts = load_weights(path)
    try:
        if facts["encoders"] != encoders:
            return None
        worth = tensors["worth"].numpy() if "worth" in tensors else None
        sounds = LearntSounds(tensors["sounds"].float().numpy(), tensors["said"].numpy()) if "sounds" in tensors else None
        return CaptionBank(tuple(facts["texts"]), tensors["vectors"].float().numpy(), float(facts["familiar"]), worth, sounds)
    except (KeyError, TypeError, ValueError) as error:
        raise DiffATRError(
            f"{path}: not the captions of a model ({type(error).__name__}: {error}). Put back what training wrote, or "
            "remove it: then there are no probabilities until `diffatr calibrate` fits some."
        ) from None


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
