"""From a recipe to modules, and from a run folder to a model that embeds and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .checkpoint import fill, load_weights
from .core.audio_encoder import AudioEncoder
from .core.bank import CaptionBank
from .core.calibration import Calibration
from .core.sampler import ddim_levels
from .core.sampling import Sampling
from .core.scoring import Reranker
from .core.text import CaptionEncoder
from .core.towers import Head, NoHead, ProjectionHead, TwoTowers
from .core.windows import OURS, Windowing
from .device import embedding_dtype, resolve_device
from .encoders import (
    HEARING,
    ClipEncoder,
    audio_key,
    build_audio_encoder,
    build_text_encoder,
    check_states,
    frames_of_clips,
    hears_logmels,
    is_given,
    is_of_transformers,
    pool_clips,
    pool_with_frames,
    source_id,
)
from .errors import DiffATRError, UsageError
from .phase_two import below, load_bank, load_reranker
from .recipe_schema import AudioSection, ModelSection, TextSection
from .runs import BEST, encoders_of, recipe_of, weights_hash


def build_towers(audio: AudioSection, text: TextSection, model: ModelSection, given: tuple[int, int] | None = None) -> TwoTowers:
    """The two towers of a recipe, with the weights of others that it names.

    Args:
        given: the sizes of a data set's own vectors, of sounds and of captions, which take the encoders' place.

    Raises:
        UsageError: a field does not suit the encoder, or without heads the sizes differ.
        DiffATRError: weights are missing or damaged.
    """
    if is_given(audio):
        if given is None:
            raise UsageError("audio.encoder: features: needs a data set that `diffatr prepare features` made")
        sounds, captions, sizes = None, None, given
    else:
        sounds, captions = build_audio_encoder(audio), build_text_encoder(text)
        captions.requires_grad_(text.finetune)
        _choose_trained(sounds, audio)
        sizes = sounds.features, captions.features
    try:
        towers = TwoTowers(sounds, captions, *sizes, model.dim, model.dropout, model.heads, model.head_width)
    except ValueError as error:
        raise UsageError(f"model.heads: {error}; set model.dim, or model.heads=mlp") from None
    if isinstance(sounds, AudioEncoder):
        sounds.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return towers


def _choose_trained(encoder: Any, audio: AudioSection) -> None:
    """Freeze what `audio.finetune` leaves as it is."""
    if audio.finetune is True or audio.finetune is False:
        encoder.requires_grad_(audio.finetune)
        return
    from .core.transformers_audio import trainable_layers

    try:
        trainable_layers(encoder, audio.finetune)
    except ValueError as error:
        raise UsageError(f"audio.finetune: {error}; use true or false") from None


def is_left_out(name: str, audio: AudioSection, text: TextSection) -> bool:
    """Whether a tensor of the towers is left out of checkpoints: a frozen model of others stays where it came from."""
    if name.startswith("text."):
        return not text.finetune
    return name.startswith("audio.") and audio.finetune is False and is_of_transformers(audio)


def trained_state(towers: TwoTowers, audio: AudioSection, text: TextSection) -> dict[str, Tensor]:
    """What a checkpoint keeps of the towers (`is_left_out`)."""
    return {k: v for k, v in towers.state_dict().items() if not is_left_out(k, audio, text)}


def fill_towers(towers: TwoTowers, tensors: dict[str, Tensor], audio: AudioSection, text: TextSection, path: Path) -> None:
    """Load what `trained_state` kept. Raises DiffATRError if it does not fit."""
    fill(towers, {k: v for k, v in towers.state_dict().items() if is_left_out(k, audio, text)} | tensors, path)


_NO_ENCODERS = "was trained on vectors of a model run elsewhere, so it hears no sounds and reads no texts. Name another model."


KINDS = "kinds.csv"
"""In a run's folder: the kinds of sound that it was taught, where somebody lists them."""


class Retriever:
    """A trained model for inference: embeds sounds and captions as unit vectors, and re-ranks by its denoisers.

    Each encoder is loaded when the first caption or sound comes: whoever indexes needs no captions, whoever asks an index
    needs no audio.

    Args:
        heads: the projection heads, of audio and of text.
        diffusion: the checkpoint of the denoisers, where they have one of their own.
        load_audio, load_text: load the encoders; both raise DiffATRError if the checkpoint does not fit the recipe.
        key_of_audio: gives `audio_key`; raises DiffATRError where the encoder is gone or is another one now.

    Attributes:
        dim: D of the shared space.
        model_id: hash of the encoders' checkpoint and of `HEARING`; vectors of different ids do not compare.
        reranker: the denoisers and how they are sampled; None where the run has no phase two.
        calibration: what scores are worth; None where phase two did not fit it, or there is none.
        name: what people call the model: a run's folder, or a name of the hub.
        hears_logmels: the audio encoder is one of this package.
        given_sizes: of the vectors of a model run elsewhere, of sounds and of captions, that are all it takes; None where it has
            encoders.
        feature_sizes: F of the encoders, of sounds and of captions; None for a two-tower model of others.
        kinds: the list of the kinds of sound that it was taught, as `tag` reads vocabularies; None where it brought none.
    """

    def __init__(
        self,
        heads: tuple[Head, Head],
        load_audio: Callable[[], ClipEncoder],
        load_text: Callable[[], CaptionEncoder],
        dim: int,
        model_id: str,
        reranker: Reranker | None,
        calibration: Calibration | None,
        device: torch.device,
        name: str = "",
        *,
        hears_logmels: bool = True,
        key_of_audio: Callable[[], str | None] = lambda: None,
        diffusion: Path | None = None,
        load_bank: Callable[[], CaptionBank | None] = lambda: None,
        given_sizes: tuple[int, int] | None = None,
        feature_sizes: tuple[int, int] | None = None,
        kinds: Path | None = None,
    ) -> None:
        self._audio_head, self._text_head = (head.to(device).eval() for head in heads)
        self.dim = dim
        self.model_id = model_id
        self.reranker = reranker
        self.calibration = calibration
        self.device = device
        self.name = name
        self.hears_logmels, self.given_sizes, self.feature_sizes = hears_logmels, given_sizes, feature_sizes
        self._diffusion, self._load_bank, self.kinds = diffusion, load_bank, kinds
        self._load_audio, self._load_text, self._key_of_audio = load_audio, load_text, key_of_audio

    @property
    def sees_frames(self) -> bool:
        """Whether it re-ranks by frames and token states (`diffusion.conditioning`)."""
        return self.reranker is not None and bool(self.reranker.conditioners)

    @cached_property
    def _text(self) -> CaptionEncoder:
        return self._load_text().to(self.device).eval()

    @cached_property
    def _audio(self) -> ClipEncoder:
        encoder = self._load_audio().to(self.device).eval()
        if not isinstance(encoder, AudioEncoder):
            return encoder
        from .core.inference import optimise_for_inference

        return optimise_for_inference(encoder, embedding_dtype(self.device))

    def load_audio(self) -> None:
        """Load the audio encoder now, and not with the first sound. Raises as `load_audio` of the constructor."""
        _ = self._audio

    @cached_property
    def bank(self) -> CaptionBank | None:
        """What it learnt from, read when a text is first looked at. Raises DiffATRError where the file is damaged."""
        return self._load_bank()

    @cached_property
    def words(self) -> frozenset[str]:
        """The words that the caption encoder knows whole, lower case; none where that cannot be told."""
        return self._text.words()

    @cached_property
    def calibration_key(self) -> str:
        """Under which a user's own calibration is kept: of the encoders and of the denoisers."""
        return self.model_id if self._diffusion is None else f"{self.model_id}-{weights_hash(self._diffusion)}"

    @cached_property
    def audio_key(self) -> str | None:
        """Names a frozen audio encoder's features in caches; None where the encoder is trained."""
        return self._key_of_audio()

    @cached_property
    def windowing(self) -> Windowing:
        """What recordings are cut into."""
        return OURS if self.hears_logmels else Windowing.of(self._audio.rate, self._audio.longest)

    def reweigh(self, weight: float) -> None:
        """Rank with another weight of x0_hat beside the cosine than validation chose. Probabilities were fitted with that one,
        so scores of texts against sounds are none any more.

        Raises:
            UsageError: a model without diffusion, or one that ranks by x0_hat alone.
        """
        if self.reranker is None:
            raise UsageError(f"{self.name}: has no diffusion phase, so there is nothing to weigh beside its cosine.")
        try:
            self.reranker = self.reranker.with_weight(weight)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}.") from None
        if self.calibration is not None:
            self.calibration = replace(self.calibration, text_to_audio=None, audio_to_text=None, presence=None, captions=None)

    @torch.inference_mode()
    def pool_audio(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        """Mono float32 waveforms at the windowing's rate -> pooled features (n, F) on the CPU, each as if it were alone."""
        return pool_clips(self._audio, waveforms, self.device)

    @torch.inference_mode()
    def embed_audio(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Mono float32 waveforms at the windowing's rate -> (n, D) float32 unit vectors, each whatever else is in the batch."""
        return self.embed_pooled_audio(self.pool_audio(waveforms))

    def check_states(self, audio: AudioSection) -> None:
        """Raises UsageError where these encoders, of a recipe's `audio` section, give no frames or no token states."""
        check_states(audio, None if self.given_sizes else self._text)

    def frames(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Mono float32 waveforms at 32 kHz -> of each its frames (T', F), float16 on the CPU."""
        return frames_of_clips(self._audio, waveforms)

    @torch.inference_mode()
    def embed_with_frames(self, waveforms: Sequence[np.ndarray]) -> tuple[np.ndarray, list[Tensor]]:
        """What `embed_audio` and `frames` give, in one pass, of one waveform at least."""
        pooled, frames = pool_with_frames(self._audio, waveforms)
        return self.embed_pooled_audio(pooled), frames

    def token_states(self, captions: Sequence[str]) -> list[Tensor]:
        """Captions -> of each the states of its tokens (L, H), float16 on the CPU."""
        return self._text.token_states(captions)

    @torch.inference_mode()
    def embed_pooled_audio(self, pooled: Tensor) -> np.ndarray:
        """Pooled audio features (n, F) -> (n, D) float32 unit vectors."""
        return self._audio_head.embed(pooled.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def embed_pooled_text(self, pooled: Tensor) -> np.ndarray:
        """Pooled caption features (m, F) -> (m, D) float32 unit vectors."""
        return self._text_head.embed(pooled.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def pool_text(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> (n, F) float32 unit vectors in the caption encoder's own space, before the head."""
        return _unit(self._text.encode(captions))

    @torch.inference_mode()
    def embed_and_pool_text(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What `embed_text` and `pool_text` give, in one pass."""
        pooled = self._text.encode(captions)
        return self.embed_pooled_text(pooled), _unit(pooled)

    @torch.inference_mode()
    def embed_text(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> (n, D) float32 unit vectors."""
        return self.embed_pooled_text(self._text.encode(captions))


def _unit(pooled: Tensor) -> np.ndarray:
    return functional.normalize(pooled.float(), dim=-1).numpy()


def load_the_same(load: Callable[[str], Retriever], device: str, model_id: str) -> Retriever:
    """A model as a worker on another machine loads it, by the name of a device.

    Raises:
        UsageError: it is another one than `model_id`.
    """
    model = load(device)
    if model.model_id != model_id:
        raise UsageError(f"{model.name} is another model there than here. Put the same one on every machine.")
    return model


def load_retriever(run: Path, device: str = "auto") -> Retriever:
    """The best model of a seed folder (`runs/RECIPE/seed-N`).

    Raises:
        DiffATRError: the folder holds no finished epoch of phase one, or checkpoints that do not fit its recipe.
    """
    return _load(run, device, with_denoisers=True)


def load_listener(run: Path, device: str = "auto") -> Retriever:
    """`load_retriever` for whoever asks with sounds and texts. Raises UsageError for a model that takes neither."""
    model = load_retriever(run, device)
    if model.given_sizes is not None:
        raise UsageError(f"{run}: {_NO_ENCODERS}")
    return model


def load_encoders(run: Path, device: str = "auto") -> Retriever:
    """The encoders of a seed folder, without whatever phase two left there. Raises as `load_retriever`."""
    return _load(run, device, with_denoisers=False)


def _load(run: Path, device: str, *, with_denoisers: bool) -> Retriever:
    recipe, first = recipe_of(run), encoders_of(run)
    weights, path = first.check(), first.folder / BEST
    tensors, facts = load_weights(path)
    of_heads = {"towers.audio_head.0.weight", "towers.text_head.0.weight"}
    if recipe.model.heads != "none" and not of_heads <= tensors.keys():
        raise DiffATRError(f"{path}: these are not the encoders of a run. Train again with: diffatr pretrain")

    def load_head(name: str) -> Head:
        if recipe.model.heads == "none":
            return NoHead()
        state = below(f"towers.{name}.", tensors)
        head = ProjectionHead(state["0.weight"].shape[1], recipe.model.dim, recipe.model.dropout, recipe.model.head_width)
        fill(head, state, path)
        return head

    def size(name: str) -> int:
        return recipe.model.dim if recipe.model.heads == "none" else tensors[f"towers.{name}.0.weight"].shape[1]

    def load_audio() -> ClipEncoder:
        if is_given(recipe.audio):
            raise UsageError(f"{run}: {_NO_ENCODERS}")
        own = below("towers.audio.", tensors)  # but for a frozen model of others
        with _told_of_run(run, "audio", recipe.audio.encoder):
            if not own:
                _check_source(facts, "audio", recipe.audio.encoder)
            audio = build_audio_encoder(recipe.audio.model_copy(update={"weights": None}))
        if own:
            fill(audio, own, path)
        return audio

    def key_of_audio() -> str | None:
        with _told_of_run(run, "audio", recipe.audio.encoder):
            if "audio" in facts.get("sources", {}):
                _check_source(facts, "audio", recipe.audio.encoder)
            return audio_key(recipe.audio)

    def load_text() -> CaptionEncoder:
        if is_given(recipe.audio):
            raise UsageError(f"{run}: {_NO_ENCODERS}")
        tuned = below("towers.text.", tensors)
        with _told_of_run(run, "text", recipe.text.encoder):
            if not tuned:
                _check_source(facts, "text", recipe.text.encoder)
            text = build_text_encoder(recipe.text)
        if tuned:
            fill(text, tuned, path)
        return text

    on_device = resolve_device(device)
    sizes = size("audio_head"), size("text_head")
    reranker, calibration = None, None
    if with_denoisers:
        reranker, calibration = load_reranker(run, first, recipe, tensors, facts, weights, sizes, on_device)
    model_id = id_of_encoders(weights)
    return Retriever(
        (load_head("audio_head"), load_head("text_head")),
        load_audio,
        load_text,
        recipe.model.dim,
        model_id,
        reranker,
        calibration,
        on_device,
        str(run),
        hears_logmels=hears_logmels(recipe.audio) or is_given(recipe.audio),
        key_of_audio=key_of_audio,
        load_bank=lambda: load_bank(run / "diffusion", model_id) if with_denoisers else None,
        diffusion=run / "diffusion" / BEST if reranker and recipe.model.strategy != "gen" else None,
        given_sizes=sizes if is_given(recipe.audio) else None,
        feature_sizes=sizes,
        kinds=kinds if (kinds := run / KINDS).is_file() else None,
    )


@contextmanager
def _told_of_run(run: Path, which: str, name: str) -> Iterator[None]:
    """Name the run in what is wrong with an encoder that its recipe names."""
    try:
        yield
    except DiffATRError as error:
        place = f" (looked for from {Path.cwd()})" if name.startswith(".") else ""
        kind = UsageError if isinstance(error, UsageError) else DiffATRError
        raise kind(f"{run}: was trained on the {which} encoder {name}{place}. {error}") from error


def _check_source(facts: dict[str, Any], which: str, name: str) -> None:
    """Raises DiffATRError where a frozen encoder is not the one any more that a run was trained on."""
    known = facts.get("sources", {}).get(which)
    if known and known != source_id(name, f"{which}.encoder"):
        raise DiffATRError("That is another model now. Restore it, or train again.")


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


def id_of_encoders(weights: str) -> str:
    """A model's id by the hash of its encoders' checkpoint: vectors also depend on what the encoders hear of a recording."""
    return hashlib.sha256(f"{weights} {HEARING}".encode()).hexdigest()[:16]
