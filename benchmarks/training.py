"""One epoch of each phase with the small encoder, over 2400 ten-second clips with a caption each.

Phase one reads cached log-mels and caption vectors while the next batch is cut out; plainly, every step computes log-mels by
convolution and puts captions through the BERT first. Phase two reads cached embeddings; plainly, every step first reads its
clips' prepared WAV files, from memory that the system keeps of them, and embeds clips and captions. The plain steps are timed
on a few batches and extrapolated. Validation, the same in both, is left out.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffatr_cli.core import norm
from diffatr_cli.core.logmel import N_MELS
from diffatr_cli.core.recorded_gradients import FROM
from diffatr_cli.core.towers import TwoTowers
from diffatr_cli.data.audio import load_audio
from diffatr_cli.data.logmels import STEPS_PER_DB, LogMels
from diffatr_cli.data.write_wav import to_pcm16, write_wav
from diffatr_cli.evaluation.embedded_split import Captions
from diffatr_cli.model import build_towers
from diffatr_cli.recipe import load_recipe
from diffatr_cli.recipe_schema import Recipe
from diffatr_cli.training.batches import TrainSplit, epoch_batches, overlapped_batches
from diffatr_cli.training.candidates import CandidateBatches
from diffatr_cli.training.clips import LogMelCrops
from diffatr_cli.training.denoisers import DenoiserPair, denoiser_optimizer, denoising_step
from diffatr_cli.training.pretrain import GPU_AHEAD, PhaseOne
from diffatr_cli.training.views import TrainingViews
from diffatr_cli.types import SAMPLE_RATE

from .common import Case, Row, Size, median, pick, seconds
from .encoders import ConvolutionalLogMel

SMALLER = ("pretrain.batch_size=4", "diffusion.batch_size=4", "audio.channels=[4,8]", "data.seconds=1", "model.dim=16")
CNN14 = ("audio.encoder=cnn14", "audio.hop=320", "audio.time_stripe=64")


def make_recipe(size: Size, *overrides: str) -> Recipe:
    """The recipe of the composed scenes, for one epoch."""
    return load_recipe("scenes-audiocaps", [*pick(size, SMALLER, (), ()), "pretrain.epochs=1", *overrides])


def make_captions(clips: int) -> Captions:
    """One caption a clip, ten words long."""
    texts = [f"a dog barks while rain falls and car {i} passes" for i in range(clips)]
    return Captions(texts, np.arange(clips), np.arange(clips + 1))


def waveforms(recipe: Recipe, clips: int, device: str) -> Tensor:
    """Noise, (clips, samples)."""
    return 0.1 * torch.randn(clips, int(recipe.data.seconds * SAMPLE_RATE), device=device)


def phase_one(size: Size, device: str = "cpu", overrides: tuple[str, ...] = ()) -> list[Row]:
    """An epoch of contrastive training."""
    recipe, plain_recipe = make_recipe(size, *overrides), make_recipe(size, *overrides, "pretrain.precision=fp32")
    clips = pick(size, 8, 320, 2400)
    rng, frames = np.random.default_rng(0), int(recipe.data.seconds * SAMPLE_RATE) // recipe.audio.hop + 1
    values = rng.integers(-80 * STEPS_PER_DB, 0, (clips * frames, N_MELS), np.int16)
    logmels, captions = LogMels(values, np.arange(clips + 1) * frames), make_captions(clips)

    phase = PhaseOne(recipe, 0, torch.device(device))
    train = TrainSplit(
        LogMelCrops(logmels, frames, recipe.audio.hop).on(torch.device(device)),
        captions,
        torch.randn(clips, phase.towers.text_head[0].in_features),
        np.arange(clips),
    )
    steps = len(epoch_batches(captions, recipe.pretrain, 0, 0))

    def epoch(until: int) -> None:
        on_gpu = device == "cuda"
        for step, batch, crops in overlapped_batches(
            train, recipe.pretrain, 0, steps, 0, pin=on_gpu, ahead=GPU_AHEAD if on_gpu else 1
        ):
            if step == until:
                break
            phase.step(train, batch, crops, 1e-4, 0)

    epoch(FROM + 1)  # to warm up, and to record where steps are recorded
    fast = seconds(lambda: epoch(steps), device)

    plain_phase = PhaseOne(plain_recipe, 0, torch.device(device))
    plain_phase.towers.to(memory_format=torch.contiguous_format)
    front_end, without = (
        ConvolutionalLogMel(recipe.audio.hop).to(device),
        TrainSplit(LogMelCrops(logmels, frames, recipe.audio.hop), captions, None, np.arange(clips)),
    )
    _, batch, _ = next(overlapped_batches(without, recipe.pretrain, 0, steps, 0))
    sound = waveforms(recipe, len(batch.rows), device)

    def plain_step() -> None:
        with torch.no_grad():
            heard = front_end(sound)
        plain_phase.step(without, batch, heard, 1e-4, 0)

    rounds = pick(size, 1, 2, 4)
    with mock.patch.object(norm._fusing, "works", False):
        plain = median(plain_step, rounds, device) * steps
    what = f"phase one, {recipe.audio.encoder}, {clips} clips of {recipe.data.seconds:g} s"
    goals = {
        ("small", "cpu"): "about 20 s on two cores, 60 s with AVX2 alone",
        ("small", "cuda"): "0.3 s",
        ("cnn14", "cuda"): "1.2 s, 2,000 clips/s",
    }
    goal = f"goal: {goals[key]}" if (key := (recipe.audio.encoder, device)) in goals else ""
    return [
        Row(what, fast, plain, goal=goal, remark=f"{steps} steps of {len(batch.rows)}; plain: {rounds} steps, extrapolated"),
    ]


@torch.no_grad()
def embed(towers: TwoTowers, front_end: nn.Module, files: list[Path], texts: list[str]) -> None:
    """What each step of phase two does first when nothing is cached."""
    sound = torch.from_numpy(np.stack([load_audio(file) for file in files]))
    towers.embed_clips(front_end(sound))
    towers.embed_tokens(*towers.text.tokenise(texts))


def phase_two(overrides: tuple[str, ...], size: Size) -> list[Row]:
    """An epoch of the denoisers of both directions."""
    recipe = make_recipe(size, *overrides)
    section, clips, dim = recipe.diffusion, pick(size, 8, 320, 2400), recipe.model.dim
    torch.manual_seed(0)
    views = TrainingViews(
        functional.normalize(torch.randn(section.views, clips, dim), dim=-1),
        functional.normalize(torch.randn(clips, dim), dim=-1),
        torch.arange(clips),
        torch.arange(clips),
    )
    batches, pair = CandidateBatches(views, section, 0), DenoiserPair(recipe.model, section)
    optimizer = denoiser_optimizer(pair, section)

    def epoch() -> None:
        for inside in range(len(batches)):
            denoising_step(pair, optimizer, batches(0, inside), torch.Generator().manual_seed(inside), section.clip_norm)

    rounds = pick(size, 1, 2, 3)
    fast = median(epoch, rounds)
    towers = build_towers(recipe.audio.model_copy(update={"weights": None}), recipe.text, recipe.model).eval()
    front_end = ConvolutionalLogMel(recipe.audio.hop)
    towers.to(memory_format=torch.contiguous_format)
    texts = make_captions(section.batch_size).texts
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / f"{i}.wav" for i in range(section.batch_size)]
        for file, wave in zip(files, waveforms(recipe, section.batch_size, "cpu").numpy(), strict=True):
            write_wav(file, to_pcm16(wave))
        before = median(lambda: embed(towers, front_end, files, texts), 1 if recipe.audio.encoder == "cnn14" else rounds)
    plain = fast + before * len(batches)
    goal = "goal: at least 50 times"
    remark = f"{len(batches)} steps of {section.batch_size}; plain: a few steps' reading and encoders, extrapolated"
    return [Row(f"phase two, {recipe.audio.encoder}, {clips} clips", fast, plain, goal=goal, remark=remark)]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"phase one": phase_one, "phase two": partial(phase_two, ()), "phase two, CNN14": partial(phase_two, CNN14)}
