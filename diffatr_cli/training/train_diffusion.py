"""Phase two: the attention denoisers of both directions under the generation loss of Eq. 6, on frozen, cached embeddings."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import load_state, load_weights, save_state, save_weights
from ..core.denoiser import AttentionDenoiser
from ..core.losses import cosine_similarity, generation_loss
from ..core.metrics import retrieval_metrics
from ..core.schedule import NoiseSchedule
from ..core.scoring import diffusion_scores, fuse
from ..data.manifest import load_dataset
from ..errors import DiffATRError, UsageError
from ..evaluation.embedded_split import Captions, EmbeddedSplit, recall_sum
from ..model import build_denoiser, build_schedule, resolve_device, wants_bf16, weights_hash
from ..progress import Progress, silent
from ..recipe_schema import Recipe
from ..runs import BEST, LAST, run_folder
from ..types import DIRECTIONS, Direction
from .candidates import CandidateBatches
from .fit_calibration import calibrate
from .phase_folder import MetricsLog, TrainingResult, open_phase, resume_command
from .views import embedded_splits


def denoising_loss(
    denoiser: AttentionDenoiser,
    schedule: NoiseSchedule,
    query: Tensor,
    candidates: Tensor,
    x_0: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One Monte Carlo term of Eq. 6: a noise level and a noise a row, x_k by Eq. 5, and the divergence of x0_hat from x_0.

    Args:
        query: (B, D).
        candidates: (N, D) shared, or (B, N, D).
        x_0: (B, N) distributions: all mass on the true candidate, shared evenly where several are true.
        generator: of levels and noise; None is torch's global one.

    Returns:
        A scalar in nats.
    """
    level = torch.randint(len(schedule), (len(query),), generator=generator).to(query.device)
    noise = torch.randn(x_0.shape, generator=generator).to(query.device)
    logits = denoiser.factored_forward(schedule.q_sample(x_0, level, noise), level, query, candidates)
    return generation_loss(logits, x_0)


class DenoiserPair(nn.Module):
    """The denoisers of both directions with their noise schedule."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.schedule = build_schedule(recipe)
        self.t2a = build_denoiser(recipe)
        self.a2t = build_denoiser(recipe)

    def of(self, direction: Direction) -> AttentionDenoiser:
        """The denoiser of a direction."""
        return self.t2a if direction == "t2a" else self.a2t

    def batch_loss(self, batch: Iterable[tuple[Direction, Tensor, Tensor, Tensor]], generator: torch.Generator) -> Tensor:
        """L_G of a batch of phase two, mean over what it holds: (direction, query, candidates, x_0) each."""
        device = next(self.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(self.recipe.diffusion.precision, device)):
            losses = [
                denoising_loss(
                    self.of(direction), self.schedule, query.to(device), candidates.to(device), x_0.to(device), generator
                )
                for direction, query, candidates, x_0 in batch
            ]
        return torch.stack(losses).mean()

    def loss(self, audio: Tensor, text: Tensor, clip_ids: Tensor) -> Tensor:
        """L_G of a batch of pairs (B, D), whose items are each other's candidates; mean of both directions."""
        same = (clip_ids[:, None] == clip_ids[None]).to(audio)
        x_0 = same / same.sum(1, keepdim=True)
        t2a = denoising_loss(self.t2a, self.schedule, text, audio, x_0)
        return (t2a + denoising_loss(self.a2t, self.schedule, audio, text, x_0)) / 2


def denoiser_optimizer(pair: DenoiserPair) -> torch.optim.Optimizer:
    """Phase two's optimizer, as the recipe says."""
    section = pair.recipe.diffusion
    return torch.optim.AdamW(pair.parameters(), lr=section.lr, weight_decay=section.weight_decay, fused=True)


def denoising_step(
    pair: DenoiserPair,
    optimizer: torch.optim.Optimizer,
    batch: Iterable[tuple[Direction, Tensor, Tensor, Tensor]],
    generator: torch.Generator,
) -> float:
    """One optimizer step of phase two on a batch as `DenoiserPair.batch_loss` takes it; its loss."""
    loss = pair.batch_loss(batch, generator)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(pair.parameters(), pair.recipe.diffusion.clip_norm)
    optimizer.step()
    return float(loss.detach())


def rank_by_diffusion(gallery: EmbeddedSplit, pair: DenoiserPair, seed: int) -> dict[Direction, dict[str, float]]:
    """Metrics of ranking a gallery by x0_hat alone, as strategy `gen` does."""
    result: dict[Direction, dict[str, float]] = {}
    for direction in DIRECTIONS:
        queries, candidates, relevant = gallery.task(direction)
        x0_hat = diffusion_scores(pair.of(direction), queries, candidates, pair.schedule, seed=seed, x0=pair.recipe.diffusion.x0)
        result[direction] = retrieval_metrics(x0_hat, relevant)
    return result


def choose_fusion(gallery: EmbeddedSplit, direction: Direction, pair: DenoiserPair, seed: int) -> tuple[float, dict[str, float]]:
    """The weight of x0_hat beside the cosine that is best on a validation gallery, and its metrics there.

    Best by R@1 + R@5 + R@10; of equals the smallest weight.
    """
    queries, candidates, relevant = gallery.task(direction)
    cosine = cosine_similarity(queries, candidates)
    section = pair.recipe.evaluation
    x0_hat = diffusion_scores(
        pair.of(direction),
        queries,
        candidates,
        pair.schedule,
        steps=section.steps,
        eta=section.eta,
        seed=seed,
        shortlist=section.shortlist,
        draws=section.draws,
        x0=pair.recipe.diffusion.x0,
    )
    tried = [(w, retrieval_metrics(fuse(cosine, x0_hat, w), relevant)) for w in sorted(section.fusion_weights)]
    return max(tried, key=lambda pair: recall_sum(pair[1]))


def train_diffusion(
    name: str,
    recipe: Recipe,
    *,
    data: Path,
    runs: Path,
    seed: int = 0,
    device: str = "auto",
    resume: Sequence[str] = (),
    progress: Progress = silent,
) -> TrainingResult:
    """Train the denoisers of a recipe on the encoders that phase one left, resuming where an earlier call was cut off.

    Raises:
        UsageError: the recipe's strategy has no phase two, or the run folder holds another recipe's run.
        DiffATRError: phase one is missing, or the loss is no longer a number.
    """
    if recipe.model.strategy != "gen-dis":
        raise UsageError(f"model.strategy: `{recipe.model.strategy}` has no phase two. Evaluate the run of pretrain as it is.")
    began = time.monotonic()
    place = resolve_device(device)
    dataset = load_dataset(data, recipe.data.name)
    run = run_folder(runs, name, seed)
    encoders = run / "pretrain" / BEST
    if not encoders.is_file():
        raise DiffATRError(
            f"{run}: phase one has not been trained. Run first: {resume_command('pretrain', resume or [name], seed=seed)}"
        )
    command = resume_command("train-diffusion", resume or [name], data=data, runs=runs, seed=seed)
    encoders_hash = weights_hash(encoders)
    folder = open_phase(run, "diffusion", recipe, seed, command, f"{dataset.fingerprint} {encoders_hash}")
    train, val = embedded_splits(run, recipe, dataset, seed, place, progress)
    torch.manual_seed(seed)
    pair = DenoiserPair(recipe).to(place)
    section = recipe.diffusion
    batches = CandidateBatches(train, section, seed)
    optimizer = denoiser_optimizer(pair)

    state = load_state(folder / LAST) or {"epoch": 0, "best": {}}
    if "model" in state:
        pair.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    best: dict[str, dict[str, Any]] = state["best"]
    kept = dict(load_weights(folder / BEST)[0]) if best else {}
    log = MetricsLog(folder, state["epoch"])
    total = section.epochs * len(batches)
    for epoch in range(state["epoch"], section.epochs):
        losses = []
        pair.train()
        for inside in range(len(batches)):
            step = epoch * len(batches) + inside
            for group in optimizer.param_groups:
                group["lr"] = section.lr * (1 + math.cos(math.pi * step / total)) / 2
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            losses.append(denoising_step(pair, optimizer, batches(epoch, inside), generator))
            progress(step + 1, total, f"epoch {epoch + 1} of {section.epochs}, loss {np.mean(losses):.3f}")
        if not math.isfinite(np.mean(losses)):
            raise DiffATRError(
                f"{folder}: the loss is {np.mean(losses)} in epoch {epoch + 1}. Lower diffusion.lr and start with a new --name."
            )
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": float(np.mean(losses))}
        for direction in DIRECTIONS:
            weight, metrics = choose_fusion(val, direction, pair.eval(), seed)
            row |= {f"{direction}_{key}": metrics[key] for key in ("r1", "r5", "r10")} | {f"{direction}_weight": weight}
            if direction not in best or recall_sum(metrics) > best[direction]["score"]:
                best[direction] = {"epoch": epoch + 1, "weight": weight, "score": recall_sum(metrics)}
                kept |= {f"{direction}.{k}": v.detach().clone() for k, v in pair.of(direction).state_dict().items()}
        log.append(row)
        facts = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "best": best, "encoders": encoders_hash}
        save_weights(folder / BEST, kept, facts | {"fusion_weights": {d: best[d]["weight"] for d in DIRECTIONS}})
        save_state(
            folder / LAST, {"epoch": epoch + 1, "best": best, "model": pair.state_dict(), "optimizer": optimizer.state_dict()}
        )
    tensors, facts = load_weights(folder / BEST)
    if "calibration" not in facts:
        progress(total, total, "calibrating scores")
        pair.load_state_dict(pair.state_dict() | tensors)
        fitted = calibrate(
            val,
            Captions.of(dataset.split("val")),
            {d: pair.of(d).eval() for d in DIRECTIONS},
            {d: best[d]["weight"] for d in DIRECTIONS},
            pair.schedule,
            recipe,
            seed,
        )
        save_weights(folder / BEST, tensors, facts | {"calibration": fitted and fitted.to_json()})
    chosen = {f"{d}_{key}": value for d in DIRECTIONS for key, value in best[d].items()}
    return TrainingResult(folder, chosen, time.monotonic() - began)
