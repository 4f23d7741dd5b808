"""Phase one: the encoders under the contrastive loss of Eq. 8; or with the denoisers, under L_G alone (Table 5's `gen`) or under
both losses (`joint`).

Every random choice depends on the seed and the step alone, so a run that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ..core.audio_encoder import AudioEncoder
from ..core.losses import nt_xent
from ..core.recorded_gradients import RecordedGradients
from ..core.sampling import Sampling
from ..core.scoring import Reranker
from ..core.sending import send
from ..core.towers import TwoTowers
from ..core.windows import OURS, Windowing
from ..data.manifest import Dataset, load_dataset
from ..device import resolve_device, wants_bf16
from ..encoders import audio_key, check_states, is_given, pool_clips, source_id
from ..errors import DiffATRError, UsageError
from ..evaluation.embedded_split import Captions, EmbeddedSplit, embed_split, recall_sum
from ..evaluation.ranking import rank
from ..model import build_towers, is_left_out, trained_state
from ..processes import (
    count,
    from_first,
    gathered,
    is_first,
    join_batch_norms,
    mean_gradients,
    share,
    shared_rows,
    summed,
)
from ..processes import (
    rank as process_rank,
)
from ..progress import Progress, silent
from ..recipe_schema import TRAINS_DENOISERS, PretrainSection, Recipe
from ..runs import FIRST_PHASE, SECOND_PHASE, borrowed_encoders, run_folder
from ..types import DIRECTIONS
from .batches import Batch, TrainSplit, epoch_batches, overlapped_batches
from .clips import LogMelCrops, PooledClips, training_clips
from .denoisers import DenoiserPair
from .joint import keep_as_two_phases, validate_joint
from .phase_folder import PhaseFolder, TrainingResult, open_phase, resume_command
from .refit_heads import PooledViews, refit_heads
from .running_loss import RunningLoss
from .streams import torch_seed, torch_stream
from .views import augmented_views

GPU_AHEAD = 3  # batches that are cut out at a time for a GPU, which takes them faster than one thread makes them


def pretrain(
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
    """Train a recipe's encoders, resuming where an earlier call was cut off.

    Args:
        name: what the run is kept under, most often the recipe's name.
        resume: the arguments of the command that does this job, for the record of how to resume it.
    Raises:
        DiffATRError: data are missing, or the loss is no longer a number.
        UsageError: the run folder holds another recipe's run, or another process is training there; or the recipe has encoders
            and the data set holds vectors, or the reverse.
    """
    began = time.monotonic()
    on_device = resolve_device(device)
    dataset = load_dataset(data, recipe.data.name)
    _check_kind(recipe, dataset)
    command = resume_command("pretrain", resume or [name], data=data, runs=runs, seed=seed)
    # With L_G the denoisers are trained here too, by the sections that are phase two's otherwise.
    sections = FIRST_PHASE + (SECOND_PHASE if recipe.model.strategy in TRAINS_DENOISERS else ())
    run = run_folder(runs, name, seed)
    if borrowed_encoders(run):
        raise UsageError(f"{run}: holds a run on the encoders of another. Choose another --name for encoders of its own.")
    phase = PhaseOne(recipe, seed, on_device, dataset.given_sizes)  # what is wrong with a model is told before all else
    if recipe.diffusion.conditioning != "none":
        check_states(recipe.audio, phase.towers.text)  # and so is what phase two would refuse
    with open_phase(run, "pretrain", recipe, sections, seed, command, dataset.fingerprint) as folder:
        best = _train(phase, recipe.pretrain, dataset, folder, progress)
        if recipe.model.strategy == "joint":
            keep_as_two_phases(run, recipe, dataset, seed, on_device, command, progress)
    return TrainingResult(folder.path, best, time.monotonic() - began)


def pretrain_fold(
    run: Path,
    recipe: Recipe,
    dataset: Dataset,
    places: np.ndarray,
    fold: str,
    *,
    seed: int,
    device: torch.device,
    command: str,
    progress: Progress = silent,
) -> None:
    """Phase one on some clips of the training split alone, in a seed folder `run` of its own; resumed and refused as `pretrain`.

    Args:
        places: of these clips in the training split.
        fold: what tells them apart from other clips of the same data set, for the record.
        command: that starts or continues this, for the record.
    """
    phase = PhaseOne(recipe, seed, device, dataset.given_sizes)
    with open_phase(run, "pretrain", recipe, FIRST_PHASE, seed, command, f"{dataset.fingerprint} {fold}") as folder:
        folder.add_fact("fold", fold)
        _train(phase, recipe.pretrain, dataset, folder, progress, places)


def _check_kind(recipe: Recipe, dataset: Dataset) -> None:
    if is_given(recipe.audio) and dataset.vectors is None:
        raise UsageError(
            f"audio.encoder: features takes the vectors of a data set, and {dataset.root} holds audio. Name another "
            "encoder, or with data.name a set of `diffatr prepare features`."
        )
    if dataset.vectors is not None and not is_given(recipe.audio):
        raise UsageError(
            f"audio.encoder: {recipe.audio.encoder} hears sounds, and {dataset.root} holds vectors of a model run elsewhere. Set "
            "audio.encoder and text.encoder to features, as the recipe `features` does, or name another data.name."
        )


def _train(
    phase: PhaseOne,
    section: PretrainSection,
    dataset: Dataset,
    folder: PhaseFolder,
    progress: Progress,
    places: np.ndarray | None = None,
) -> dict[str, Any]:
    """All that is left to train; the log's row of the best epoch. `places`: of the training clips, where these are not all."""
    seed = phase.seed
    captions = Captions.of(dataset.split("train"))
    steps_per_epoch = len(epoch_batches(captions if places is None else captions.only(places), section, seed, 0))
    total = section.epochs * steps_per_epoch

    state: dict[str, Any] = {"step": 0, "best": {}, "loss": 0.0} | folder.resume(phase, phase.optimizer)
    best: dict[str, Any] = state["best"]
    losses = RunningLoss(state["loss"], state["step"] % steps_per_epoch, count())
    kept = folder.load_best()[1]["best"] if best else {}
    if kept.get("epoch", 0) > section.epochs:  # killed after the refitted heads were kept and before that was noted
        best, state["refitted"] = kept, True
    refitted = state.get("refitted", False) or not section.head_steps
    if (state["step"] == total or (best and not phase.trained)) and refitted:
        return best
    train = phase.read(dataset, progress)
    if places is not None:
        train = train.only(places)
    log = folder.log(state["step"] // steps_per_epoch + state.get("refitted", False))
    folder.record_start(phase.device, "bf16" if phase.bf16 else "fp32", len(log.rows))

    def keep_if_best(row: dict[str, Any]) -> None:
        nonlocal best
        log.append(row)
        if not best or row["score"] > best["score"]:
            best = row
            folder.keep_best(phase.kept(), {"best": best, "fusion_weights": {}, "sources": phase.sources})

    if not phase.trained:  # the encoders share a space as they are
        keep_if_best({"epoch": 0, **phase.validate(dataset)})
        folder.save(phase.kept(), phase.optimizer, {"step": 0, "best": best, "loss": 0.0})
        return best
    saved = time.monotonic()
    on_gpu = phase.device.type == "cuda"
    ahead = GPU_AHEAD if on_gpu else 1
    for step, batch, clips in overlapped_batches(train, section, seed, steps_per_epoch, state["step"], pin=on_gpu, ahead=ahead):
        torch.manual_seed(torch_seed(seed, "augmentation", step, *([process_rank()] if count() > 1 else [])))
        losses.add(phase.step(train, batch, clips, learning_rate(section, step, steps_per_epoch), step))
        epoch, inside = divmod(step + 1, steps_per_epoch)
        progress(step + 1, total, f"epoch {epoch + (inside > 0)} of {section.epochs}, loss {losses.mean:.3f}")
        if inside == 0:
            if not math.isfinite(losses.total):
                raise DiffATRError(
                    f"{folder.path}: the loss is {losses.total} in epoch {epoch}. Lower pretrain.lr and start with a new --name."
                )
            keep_if_best({"epoch": epoch, "loss": losses.total / steps_per_epoch, **phase.validate(dataset)})
            losses = RunningLoss(divisor=count())
        if inside == 0 or time.monotonic() - saved > 60 * section.checkpoint_minutes:
            saved = time.monotonic()
            folder.save(phase.kept(), phase.optimizer, {"step": step + 1, "best": best, "loss": losses.total})
    if not refitted:
        phase.load_state_dict(phase.state_dict() | folder.load_best()[0])
        loss = phase.refit_heads(train, progress)
        keep_if_best({"epoch": section.epochs + 1, "loss": loss, **phase.validate(dataset)})
        folder.save(phase.kept(), phase.optimizer, {"step": total, "best": best, "loss": 0.0, "refitted": True})
    return best


class PhaseOne(nn.Module):
    """What phase one trains, and one step of it: the towers, and with strategy `gen` or `joint` the denoisers beside them."""

    def __init__(self, recipe: Recipe, seed: int, device: torch.device, given: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(torch_seed(seed, "weights"))
        self.seed = seed
        self.device = device
        self.section, self.temperature = recipe.pretrain, recipe.model.temperature
        self.audio_section, self.text_section, self.seconds = recipe.audio, recipe.text, recipe.data.seconds
        self.finetuned, self.same_captions = recipe.text.finetune and not is_given(recipe.audio), recipe.data.same_captions
        self.views, self.audio_key = recipe.diffusion.views, audio_key(recipe.audio)
        self.sampling = Sampling.of(recipe, seed=seed)
        self.towers: TwoTowers = build_towers(recipe.audio, recipe.text, recipe.model, given)
        self.strategy, self.evaluation = recipe.model.strategy, recipe.evaluation
        self.denoisers = DenoiserPair(recipe.model, recipe.diffusion) if self.strategy in TRAINS_DENOISERS else None
        self.to(device)
        join_batch_norms(self, device)
        self.bf16 = wants_bf16(self.section.precision, device)
        make = torch.optim.AdamW if self.section.optimizer == "adamw" else torch.optim.Adam
        self.trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.trained or [torch.zeros(1, device=device)]}]
        if self.denoisers is not None and self.strategy == "joint":  # they keep phase two's rate, decay and norm
            own, diffusion = [p for p in self.towers.parameters() if p.requires_grad], recipe.diffusion
            groups = [{"params": own}] if own else []
            its = {"clip": diffusion.clip_norm, "weight_decay": diffusion.weight_decay, "rate": diffusion.lr / self.section.lr}
            groups.append({"params": list(self.denoisers.parameters()), **its})
        self.optimizer = make(groups, lr=self.section.lr, weight_decay=self.section.weight_decay, fused=True)
        alone = count() == 1 and self.denoisers is None
        self._recorded = RecordedGradients(self._contrast, self.trained) if device.type == "cuda" and alone else None
        self._encoded: dict[tuple[str, ...], Tensor] = {}  # captions by a frozen encoder

    def read(self, dataset: Dataset, progress: Progress) -> TrainSplit:
        """The training split, with everything cached that training does not change. Raises DiffATRError if it has no clips."""
        captions = Captions.of(dataset.split("train"))
        clips = training_clips(dataset, self.towers.audio, self.audio_section, self.seconds, self.eval(), progress)
        if isinstance(clips, LogMelCrops):
            clips = clips.on(self.device)
        given, vectors = dataset.given("train"), None
        if given is not None:
            vectors = given.text
        elif not self.finetuned:
            vectors = shared_rows(self.text.encode, captions.texts)
        return TrainSplit(clips, captions, vectors, captions.positive_groups(self.same_captions))

    @cached_property
    def sources(self) -> dict[str, str]:
        """What tells the encoders of others apart that checkpoints leave out, to notice later that they are others."""
        names = {"audio": self.audio_section.encoder, "text": self.text_section.encoder}
        tensors = self.towers.state_dict()
        left_out = {name.partition(".")[0] for name in tensors if is_left_out(name, self.audio_section, self.text_section)}
        return {which: source_id(names[which], f"{which}.encoder") for which in sorted(left_out)}

    @property
    def text(self) -> Any:
        """The caption encoder, which phase one always has."""
        return self.towers.text

    def step(self, train: TrainSplit, batch: Batch, crops: Any, lr: float, number: int) -> Tensor:
        """One optimizer step on a batch's captions and the crops of this process's share of their clips; its loss summed
        over all processes, a scalar on the device, which is not waited for.

        The loss, and so the negatives, are of the captions and clips of all processes. `number` is of the step.
        """
        self.train()
        if self._recorded is not None and self._records(train):
            loss = self._recorded.run(*self._contrast_inputs(train, batch, crops))
        else:
            # Several processes must draw the same noise, while each has dropout of its own.
            loss = self.loss(train, batch, crops, torch_stream(self.seed, "diffusion", number) if count() > 1 else None)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        mean_gradients(self.trained)
        for group in self.optimizer.param_groups:
            clip_grad_norm_(group["params"], group.get("clip", self.section.clip_norm))
            group["lr"] = lr * group.get("rate", 1.0)
        self.optimizer.step()
        return summed(loss.detach())

    def loss(self, train: TrainSplit, batch: Batch, crops: Any, generator: torch.Generator | None = None) -> Tensor:
        """Eq. 8 of a batch, with strategy `gen` Eq. 6, with `joint` both. Its mean over all processes is the loss.

        Arguments as of `step`.

        `generator`, equal in all of them, is of the noise of Eq. 6.
        """
        mine, position = self._mine(train, batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embed = self.towers.embed_pooled_audio if isinstance(train.clips, PooledClips) else self.towers.embed_clips
            audio = embed(send(crops, self.device))
            text = gathered(self._embed_captions(train, batch, mine))
        audio = gathered(audio[send(torch.from_numpy(position), self.device)])
        clip_ids = send(torch.from_numpy(batch.clip_ids), self.device)
        if self.denoisers is None:
            return nt_xent(audio, text, self.temperature, clip_ids)
        generation = self.denoisers.loss_of_pairs(audio, text, clip_ids, generator)
        if self.strategy == "gen":
            return generation
        return nt_xent(audio, text, self.temperature, clip_ids) + self.section.generation_weight * generation

    @staticmethod
    def _mine(train: TrainSplit, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """The places in a batch of this process's captions, and of each its clip among this process's crops."""
        clips, position = np.unique(train.captions.clip_index[batch.rows], return_inverse=True)
        own = share(len(clips))
        mine = np.flatnonzero((own.start <= position) & (position < own.stop))  # rows are in the order of their clips
        return mine, position[mine] - own.start

    def _records(self, train: TrainSplit) -> bool:
        """Whether a step's loss is one of tensors of few shapes alone: not where the caption encoder learns, whose captions are
        of any number of tokens, nor where an encoder of others takes what it likes."""
        return (
            train.vectors is not None and isinstance(self.towers.audio, AudioEncoder) and not isinstance(train.clips, PooledClips)
        )

    def _contrast_inputs(self, train: TrainSplit, batch: Batch, crops: Any) -> list[Tensor]:
        """What `_contrast` takes, on the device; all that is drawn on the processor is drawn here."""
        mine, position = self._mine(train, batch)
        heard: Tensor = send(crops, self.device)
        captions = self._pooled_captions(train, batch, mine)
        drawn = self.towers.audio.augmentation(*heard.shape[:2])
        rest = (torch.from_numpy(position), captions, torch.from_numpy(batch.clip_ids), *drawn)
        return [heard, *(send(each, self.device) for each in rest)]

    def _contrast(self, crops: Tensor, position: Tensor, captions: Tensor, clip_ids: Tensor, *drawn: Tensor) -> Tensor:
        """`loss` of one process without denoisers, of tensors on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            audio = self.towers.embed_pooled_audio(self.towers.audio.pooled(crops, drawn))
            text = self.towers.embed_pooled_text(captions)
        return nt_xent(audio[position], text, self.temperature, clip_ids)

    def refit_heads(self, train: TrainSplit, progress: Progress) -> float:
        """The heads fitted again on the frozen encoders; the loss. Needs cached caption vectors."""
        assert train.vectors is not None
        audio = augmented_views(self.towers.audio, train.clips, self.views, self.seed, self.bf16, self.device, progress)
        views = PooledViews(audio, train.vectors, train.captions, train.positive_group)
        loss = 0.0
        if is_first():
            loss = refit_heads(self.towers, views, self.section, self.temperature, self.seed, progress)
        heads = nn.ModuleList([self.towers.audio_head, self.towers.text_head])
        loss, fitted = from_first((loss, {name: tensor.cpu() for name, tensor in heads.state_dict().items()}))
        heads.load_state_dict(fitted)
        return loss

    def _embed_captions(self, train: TrainSplit, batch: Batch, mine: np.ndarray) -> Tensor:
        """Unit vectors of the captions at these places of a batch, from the BERT or from its cached vectors.

        A frozen BERT embeds what was joined here and now: hardly any of it comes a second time.
        """
        if train.vectors is None:
            ids, mask = self.text.tokenise([batch.texts[place] for place in mine])
            return self.towers.embed_tokens(send(ids, self.device), send(mask, self.device))
        return self.towers.embed_pooled_text(send(self._pooled_captions(train, batch, mine), self.device))

    def _pooled_captions(self, train: TrainSplit, batch: Batch, mine: np.ndarray) -> Tensor:
        """(b, F) what a frozen BERT makes of the captions at these places of a batch, on the CPU."""
        assert train.vectors is not None
        pooled = train.vectors[torch.from_numpy(batch.rows[mine])]
        joined = np.flatnonzero(batch.composed[mine])
        if len(joined):
            pooled[torch.from_numpy(joined)] = self.text.encode([batch.texts[mine[place]] for place in joined])
        return pooled

    @torch.no_grad()
    def validate(self, dataset: Dataset) -> dict[str, Any]:
        """R@1/5/10 of both directions on the validation split, and `score`, their sum, which chooses the best epoch."""
        self.eval()
        val = embed_split(self, dataset, "val", self.same_captions)
        if self.denoisers is not None and self.strategy == "joint":
            clips = dataset.split("val")
            return validate_joint(val, clips, self.same_captions, self.denoisers, self.sampling, self.evaluation)
        metrics = {direction: self._rank(val, direction) for direction in DIRECTIONS}
        row: dict[str, Any] = {f"{d}_{key}": m[key] for d, m in metrics.items() for key in ("r1", "r5", "r10")}
        return from_first(row | {"score": sum(map(recall_sum, metrics.values()))})

    def _rank(self, val: EmbeddedSplit, direction: Any) -> dict[str, float]:
        if self.denoisers is None:
            return rank(val, direction)["baseline"]
        reranker = Reranker(self.denoisers.by_direction(), self.denoisers.schedule, self.sampling, {})
        return rank(val, direction, reranker)["diff"]

    @property
    def windowing(self) -> Windowing:
        """At which rate the audio encoder hears."""
        audio = self.towers.audio
        return OURS if audio is None or isinstance(audio, AudioEncoder) else Windowing.of(audio.rate, audio.longest)

    def pool_audio(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """Waveforms -> pooled features (n, F); in evaluation mode."""
        return pool_clips(self.towers.audio, waveforms, self.device)

    @torch.no_grad()
    def embed_pooled_audio(self, pooled: Tensor) -> np.ndarray:
        """Pooled features (n, F) -> unit vectors (n, D)."""
        return self.towers.embed_pooled_audio(pooled.to(self.device)).cpu().numpy()

    @torch.no_grad()
    def embed_pooled_text(self, pooled: Tensor) -> np.ndarray:
        """Pooled caption features (m, F) -> unit vectors (m, D)."""
        return self.towers.embed_pooled_text(pooled.to(self.device)).cpu().numpy()

    def embed_text(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> unit vectors (m, D); those of a frozen encoder are kept for the next time."""
        encoded = self._encoded.get(tuple(captions))
        if encoded is None:
            encoded = self.text.encode(captions)
            if not self.finetuned:  # the same at every epoch
                self._encoded[tuple(captions)] = encoded
        return self.embed_pooled_text(encoded)

    def kept(self) -> dict[str, Tensor]:
        """What checkpoints hold."""
        towers = {f"towers.{k}": v for k, v in trained_state(self.towers, self.audio_section, self.text_section).items()}
        return towers | ({} if self.denoisers is None else {f"denoisers.{k}": v for k, v in self.denoisers.state_dict().items()})


def learning_rate(section: PretrainSection, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step (from 0).

    `onecycle` rises by a cosine from lr / 25 to lr over the first 30 % of the steps and falls by one to lr / 10000
    (Smith and Topin 2018), as torch's OneCycleLR; `step` multiplies by lr_decay every lr_step epochs.
    """
    if section.schedule == "step":
        return section.lr * section.lr_decay ** (step // steps_per_epoch // section.lr_step)
    if section.schedule == "constant":
        return section.lr
    last = section.epochs * steps_per_epoch - 1
    peak = 0.3 * (last + 1) - 1
    low, on_device = (section.lr / 25, step / peak) if step < peak else (section.lr / 1e4, 1 - (step - peak) / (last - peak))
    return low + (section.lr - low) * (1 - math.cos(math.pi * on_device)) / 2
