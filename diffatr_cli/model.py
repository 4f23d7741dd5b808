"""From a recipe to modules, and from a run folder to a model that embeds and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import fill, load_weights
from .core.audio_encoder import AudioEncoder, SmallCnn
from .core.calibration import Calibration
from .core.denoiser import AttentionDenoiser, DenoiserConfig
from .core.schedule import NoiseSchedule
from .core.text import TextEncoder
from .core.towers import ProjectionHead, TwoTowers
from .errors import DiffATRError, UsageError
from .pretrained import load_panns, load_text_encoder
from .recipe_schema import AudioSection, Recipe
from .runs import BEST, recipe_of
from .types import DIRECTIONS, Direction


def resolve_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` or `mps` as a device. Raises UsageError for others."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device: {name} is no device. Use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: this machine or this build of torch has no CUDA GPU. Use cpu or auto.")
    return device


@cache
def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run in bf16: as told, or for `auto` where the device multiplies bf16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def build_audio_encoder(section: AudioSection) -> AudioEncoder:
    """The audio encoder of a recipe, with the PANNs authors' weights where `audio.weights` names them."""
    stripes = (section.time_stripe, section.mel_stripe) if section.spec_augment else None
    if section.encoder == "small":
        if section.weights is not None:
            raise UsageError("audio.weights: PANNs weights fit cnn14 and resnet38, not the small encoder")
        return SmallCnn(section.channels, section.hop, section.dropout, stripes, section.perturb)
    from .core.panns import Cnn14, ResNet38

    encoder = (Cnn14 if section.encoder == "cnn14" else ResNet38)(
        dropout=section.dropout, stripes=stripes, perturbed=section.perturb
    )
    if section.weights is not None:
        load_panns(encoder, Path(section.weights).expanduser())
    return encoder


def build_towers(recipe: Recipe, *, pretrained: bool = True) -> TwoTowers:
    """The two towers of a recipe; `pretrained=False` leaves out the PANNs weights, for a checkpoint that brings its own."""
    audio = recipe.audio if pretrained else recipe.audio.model_copy(update={"weights": None})
    text = load_text_encoder(recipe.text.encoder, recipe.text.pooling, recipe.text.max_tokens)
    if not recipe.text.finetune:
        text.requires_grad_(False)
    towers = TwoTowers(build_audio_encoder(audio), text, text.features, recipe.model.dim, recipe.model.dropout)
    towers.audio.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return towers


def trained_state(towers: TwoTowers, recipe: Recipe) -> dict[str, Tensor]:
    """What a checkpoint keeps of the towers: all but a frozen BERT, which is where it came from."""
    return {k: v for k, v in towers.state_dict().items() if recipe.text.finetune or not k.startswith("text.")}


def fill_towers(towers: TwoTowers, tensors: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Load what `trained_state` kept. Raises DiffATRError if it does not fit."""
    if not recipe.text.finetune:
        tensors = {k: v for k, v in towers.state_dict().items() if k.startswith("text.")} | tensors
    fill(towers, tensors, path)


def build_denoiser(recipe: Recipe, generator: torch.Generator | None = None) -> AttentionDenoiser:
    """One denoiser of the recipe; either direction's. The fields of `DenoiserConfig` have the same names in the recipe."""
    settings = recipe.model.model_dump() | recipe.diffusion.model_dump()
    return AttentionDenoiser(**{field.name: settings[field.name] for field in fields(DenoiserConfig)}, generator=generator)


def build_schedule(recipe: Recipe) -> NoiseSchedule:
    """The noise schedule of the recipe."""
    make = NoiseSchedule.cosine if recipe.diffusion.schedule == "cosine" else NoiseSchedule.linear
    return make(recipe.diffusion.steps)


class Retriever:
    """A trained model for inference: embeds sounds and captions as unit vectors, and holds the denoisers to score them.

    Each encoder is loaded when the first caption or sound comes: whoever indexes needs no captions, whoever asks an index
    needs no audio.

    Args:
        heads: the projection heads, of audio and of text.
        load_audio, load_text: load the encoders; both raise DiffATRError if the checkpoint does not fit the recipe.

    Attributes:
        model_id: hash of the encoders' checkpoint; vectors of different ids do not compare.
        denoisers: by direction; empty where the run has no phase two.
        fusion_weights: by direction, chosen on validation.
        calibration: what scores are worth; None where phase two did not fit it, or there is none.
    """

    def __init__(
        self,
        recipe: Recipe,
        heads: tuple[ProjectionHead, ProjectionHead],
        load_audio: Callable[[], AudioEncoder],
        load_text: Callable[[], TextEncoder],
        model_id: str,
        denoisers: dict[Direction, AttentionDenoiser],
        fusion_weights: dict[Direction, float],
        calibration: Calibration | None,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self._audio_head, self._text_head = (head.to(device).eval() for head in heads)
        self.model_id = model_id
        self.denoisers = {direction: denoiser.to(device).eval() for direction, denoiser in denoisers.items()}
        self.fusion_weights = fusion_weights
        self.calibration = calibration
        self.schedule = build_schedule(recipe)
        self.x0 = recipe.diffusion.x0
        self.dim = recipe.model.dim
        self.device = device
        self._load_audio, self._load_text = load_audio, load_text

    @cached_property
    def _text(self) -> TextEncoder:
        return self._load_text().to(self.device).eval()

    @cached_property
    def _audio(self) -> AudioEncoder:
        from .core.inference import optimise_for_inference

        return optimise_for_inference(self._load_audio().to(self.device).eval())

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Mono float32 waveforms at 32 kHz -> (n, D) float32 unit vectors, each whatever else is in the batch."""
        from .core.inference import pooled_features

        pooled = pooled_features(self._audio, [torch.from_numpy(wave) for wave in waveforms])
        return self._audio_head.embed(pooled.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> (n, D) float32 unit vectors."""
        return self._text_head.embed(self._text.encode(captions).to(self.device)).cpu().numpy()


def load_retriever(run: Path, device: str = "auto") -> Retriever:
    """The best model of a seed folder (`runs/RECIPE/seed-N`).

    Raises:
        DiffATRError: the folder holds no finished epoch of phase one, or checkpoints that do not fit its recipe.
    """
    recipe = recipe_of(run)
    path = run / "pretrain" / BEST
    tensors, facts = load_weights(path)
    if not {"towers.audio_head.0.weight", "towers.text_head.0.weight"} <= tensors.keys():
        raise DiffATRError(f"{path}: these are not the encoders of a run. Train again with: diffatr pretrain")

    def load_head(name: str) -> ProjectionHead:
        state = _below(f"towers.{name}.", tensors)
        head = ProjectionHead(state["0.weight"].shape[1], recipe.model.dim, recipe.model.dropout)
        fill(head, state, path)
        return head

    def load_audio() -> AudioEncoder:
        audio = build_audio_encoder(recipe.audio.model_copy(update={"weights": None}))
        fill(audio, _below("towers.audio.", tensors), path)
        return audio

    def load_text() -> TextEncoder:
        text = load_text_encoder(recipe.text.encoder, recipe.text.pooling, recipe.text.max_tokens)
        if tuned := _below("towers.text.", tensors):  # a frozen BERT is not in the checkpoint
            fill(text, tuned, path)
        return text

    model_id = weights_hash(path)
    denoisers, weights, calibration = _load_denoisers(run, recipe, tensors, facts, model_id)
    heads = load_head("audio_head"), load_head("text_head")
    return Retriever(recipe, heads, load_audio, load_text, model_id, denoisers, weights, calibration, resolve_device(device))


def shipped_model() -> Path:
    """The seed folder of `diffatr-small`, the model inside the package. Raises DiffATRError if it was left out."""
    folder = Path(__file__).parent / "models" / "diffatr-small"
    if not (folder / "pretrain" / BEST).is_file():
        raise DiffATRError(f"{folder}: the model is missing from this installation. Install again, or name a run with --run.")
    return folder


def _load_denoisers(
    run: Path, recipe: Recipe, tensors: dict[str, Tensor], facts: dict[str, Any], model_id: str
) -> tuple[dict[Direction, AttentionDenoiser], dict[Direction, float], Calibration | None]:
    """The denoisers of phase two, or, where the strategy is L_G alone, those that phase one's checkpoint holds; with their
    fusion weights and calibration."""
    path, inside = run / "pretrain" / BEST, "denoisers."
    if recipe.model.strategy != "gen":
        path, inside = run / "diffusion" / BEST, ""
        if not path.is_file():
            return {}, {}, None
        tensors, facts = load_weights(path)
        if facts["encoders"] != model_id:
            raise DiffATRError(
                f"{path}: was trained on other encoders than {run / 'pretrain'} holds now. Run train-diffusion again."
            )
    denoisers: dict[Direction, AttentionDenoiser] = {}
    for direction in DIRECTIONS:
        denoisers[direction] = build_denoiser(recipe)
        fill(denoisers[direction], _below(f"{inside}{direction}.", tensors), path)
    fitted = facts.get("calibration")
    return denoisers, facts["fusion_weights"], Calibration.from_json(fitted) if fitted else None


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def weights_hash(path: Path) -> str:
    """A short hash of a checkpoint file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
