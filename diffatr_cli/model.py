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
from .core.sampler import ddim_levels
from .core.sampling import Sampling
from .core.schedule import NoiseSchedule
from .core.scoring import Reranker
from .core.text import TextEncoder
from .core.towers import ProjectionHead, TwoTowers
from .errors import DiffATRError, UsageError
from .pretrained import load_panns, load_text_encoder
from .recipe_schema import AudioSection, DiffusionSection, ModelSection, Recipe, TextSection
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


def build_text_encoder(section: TextSection) -> TextEncoder:
    """The caption encoder of a recipe."""
    return load_text_encoder(section.encoder, section.pooling, section.max_tokens)


def build_towers(audio: AudioSection, text: TextSection, model: ModelSection) -> TwoTowers:
    """The two towers of a recipe, with the weights of others that it names."""
    captions = build_text_encoder(text)
    if not text.finetune:
        captions.requires_grad_(False)
    towers = TwoTowers(build_audio_encoder(audio), captions, captions.features, model.dim, model.dropout)
    towers.audio.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return towers


def trained_state(towers: TwoTowers, finetuned: bool) -> dict[str, Tensor]:
    """What a checkpoint keeps of the towers: all but a frozen BERT, which is where it came from."""
    return {k: v for k, v in towers.state_dict().items() if finetuned or not k.startswith("text.")}


def fill_towers(towers: TwoTowers, tensors: dict[str, Tensor], finetuned: bool, path: Path) -> None:
    """Load what `trained_state` kept. Raises DiffATRError if it does not fit."""
    if not finetuned:
        tensors = {k: v for k, v in towers.state_dict().items() if k.startswith("text.")} | tensors
    fill(towers, tensors, path)


def build_denoiser(model: ModelSection, section: DiffusionSection, generator: torch.Generator | None = None) -> AttentionDenoiser:
    """One denoiser of a recipe; either direction's. The fields of `DenoiserConfig` have the same names in the recipe."""
    settings = model.model_dump() | section.model_dump()
    return AttentionDenoiser(**{field.name: settings[field.name] for field in fields(DenoiserConfig)}, generator=generator)


def build_schedule(section: DiffusionSection) -> NoiseSchedule:
    """The noise schedule of a recipe."""
    make = NoiseSchedule.cosine if section.schedule == "cosine" else NoiseSchedule.linear
    return make(section.steps)


class Retriever:
    """A trained model for inference: embeds sounds and captions as unit vectors, and re-ranks by its denoisers.

    Each encoder is loaded when the first caption or sound comes: whoever indexes needs no captions, whoever asks an index
    needs no audio.

    Args:
        heads: the projection heads, of audio and of text.
        load_audio, load_text: load the encoders; both raise DiffATRError if the checkpoint does not fit the recipe.

    Attributes:
        dim: D of the shared space.
        model_id: hash of the encoders' checkpoint; vectors of different ids do not compare.
        reranker: the denoisers and how they are sampled; None where the run has no phase two.
        calibration: what scores are worth; None where phase two did not fit it, or there is none.
    """

    def __init__(
        self,
        heads: tuple[ProjectionHead, ProjectionHead],
        load_audio: Callable[[], AudioEncoder],
        load_text: Callable[[], TextEncoder],
        dim: int,
        model_id: str,
        reranker: Reranker | None,
        calibration: Calibration | None,
        device: torch.device,
    ) -> None:
        self._audio_head, self._text_head = (head.to(device).eval() for head in heads)
        self.dim = dim
        self.model_id = model_id
        self.reranker = reranker
        self.calibration = calibration
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
    return _load(run, device, with_denoisers=True)


def load_encoders(run: Path, device: str = "auto") -> Retriever:
    """The encoders of a seed folder, without whatever phase two left there. Raises as `load_retriever`."""
    return _load(run, device, with_denoisers=False)


def _load(run: Path, device: str, *, with_denoisers: bool) -> Retriever:
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
        text = build_text_encoder(recipe.text)
        if tuned := _below("towers.text.", tensors):  # a frozen BERT is not in the checkpoint
            fill(text, tuned, path)
        return text

    model_id, on_device = weights_hash(path), resolve_device(device)
    reranker, calibration = _load_reranker(run, recipe, tensors, facts, model_id, on_device) if with_denoisers else (None, None)
    heads = load_head("audio_head"), load_head("text_head")
    return Retriever(heads, load_audio, load_text, recipe.model.dim, model_id, reranker, calibration, on_device)


def sampling_of(model: Retriever, *, folder: bool = False, **overrides: Any) -> Sampling:
    """How a model samples, with those overrides (fields of `Sampling`) that are not None in their place.

    Args:
        folder: for searching a folder, where the shortlist is never everything.

    Raises:
        UsageError: a setting out of its range, or more steps than the model's chain has.
    """
    own = model.reranker.sampling if model.reranker else Sampling()
    try:
        settings = own.for_folder(**overrides) if folder else own.but(**overrides)
        if model.reranker:
            ddim_levels(len(model.reranker.schedule), settings.steps)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return settings


def shipped_model() -> Path:
    """The seed folder of `diffatr-small`, the model inside the package. Raises DiffATRError if it was left out."""
    folder = Path(__file__).parent / "models" / "diffatr-small"
    if not (folder / "pretrain" / BEST).is_file():
        raise DiffATRError(f"{folder}: the model is missing from this installation. Install again, or name a run with --run.")
    return folder


def _load_reranker(
    run: Path, recipe: Recipe, tensors: dict[str, Tensor], facts: dict[str, Any], model_id: str, device: torch.device
) -> tuple[Reranker | None, Calibration | None]:
    """The denoisers of phase two, or, where the strategy is L_G alone, those that phase one's checkpoint holds; and what their
    scores are worth."""
    path, inside = run / "pretrain" / BEST, "denoisers."
    if recipe.model.strategy != "gen":
        path, inside = run / "diffusion" / BEST, ""
        if not path.is_file():
            return None, None
        tensors, facts = load_weights(path)
        if facts["encoders"] != model_id:
            raise DiffATRError(
                f"{path}: was trained on other encoders than {run / 'pretrain'} holds now. Run train-diffusion again."
            )
    denoisers: dict[Direction, AttentionDenoiser] = {}
    for direction in DIRECTIONS:
        denoiser = build_denoiser(recipe.model, recipe.diffusion)
        fill(denoiser, _below(f"{inside}{direction}.", tensors), path)
        denoisers[direction] = denoiser.to(device).eval()
    fitted = facts.get("calibration")
    reranker = Reranker(denoisers, build_schedule(recipe.diffusion), Sampling.of(recipe), facts["fusion_weights"])
    return reranker, Calibration.from_json(fitted) if fitted else None


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def weights_hash(path: Path) -> str:
    """A short hash of a checkpoint file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
