"""Every field of a recipe: its type, its default and what it is for. Reading recipes from files is `recipe.py`'s work.

A recipe is frozen and validated as a whole. Defaults are the paper's where it states them and otherwise the choices that
`docs/paper-notes.md` explains.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]

TRAINS_DENOISERS = ("gen", "joint")
"""The strategies whose denoisers are trained in phase one, together with the encoders."""


class Section(BaseModel):
    """Base of all sections: unknown fields are errors, values are not coerced, instances do not change.

    A validator's message opens with the field at fault, `section.field: problem`, and names every other field it read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSection(Section):
    """Which prepared data set to learn from, and how much of a clip one training item holds."""

    name: str = Field(default="clotho", min_length=1, description="folder under --data that `diffatr prepare` wrote")
    seconds: Rate = Field(
        default=10.0,
        description="training clips are cut at random to this length; shorter ones are padded to the longest of their batch",
    )
    same_captions: Literal["negatives", "positives"] = Field(
        default="negatives",
        description="`positives` takes clips that share a caption for the same sound: none is a negative of another, and for "
        "validation all are found",
    )


class AudioSection(Section):
    """The audio encoder, and the log-mel front end of this package's own (32 kHz, window 1024, 64 mels, 50-14000 Hz).

    `hop` to `perturb` concern those that hear log-mels: `small`, `cnn14` and `resnet38`.
    """

    encoder: str = Field(
        default="resnet38",
        min_length=1,
        description="PANNs `cnn14` or `resnet38`, or `small`; a hub name or folder of an audio model of transformers; an encoder "
        "that a package registers; or `features`, the vectors that a data set of `prepare features` holds",
    )
    pooling: Literal["panns", "mean", "max", "model"] = Field(
        default="panns",
        description="over the frames of a model of transformers: max plus mean as PANNs, one of them, or the model's own vector",
    )
    finetune: bool | Positive = Field(
        default=True,
        description="train the encoder too; false embeds every clip once and caches it; a number trains the last so many layers "
        "of a model of transformers",
    )
    weights: str | None = Field(
        default=None, description="the PANNs authors' .pth file for the encoder; null starts from scratch"
    )
    hop: Positive = Field(default=320, description="samples between frames; PANNs encoders are defined at 320")
    channels: tuple[Positive, ...] = Field(default=(32, 64, 128, 256), min_length=1, description="block widths of `small`")
    members: Positive = Field(
        default=1,
        description="so many of `small` side by side, which share nothing but what they hear; their features are joined",
    )
    dropout: Fraction = Field(default=0.2, description="dropout after each block of the encoder while it trains")
    spec_augment: bool = Field(default=True, description="mask two time and two mel stripes of every training clip (SpecAugment)")
    time_stripe: Positive = Field(default=64, description="longest time stripe, frames")
    mel_stripe: Positive = Field(default=8, description="widest mel stripe, bins")
    perturb: bool = Field(
        default=False, description="vary every training clip's speed, pitch, loudness, colour and background at random"
    )

    @model_validator(mode="after")
    def _layers_have_names(self) -> Self:
        if not isinstance(self.finetune, bool) and self.encoder in ("small", "cnn14", "resnet38", "features"):
            raise ValueError(f"audio.finetune: audio.encoder {self.encoder} is trained whole (true) or not at all (false)")
        return self

    @model_validator(mode="after")
    def _small_has_members(self) -> Self:
        if self.members > 1 and self.encoder != "small":
            raise ValueError(f"audio.members: audio.encoder {self.encoder} stands alone; only small has members")
        return self

    @model_validator(mode="after")
    def _panns_front_end(self) -> Self:
        if self.encoder in ("cnn14", "resnet38") and self.hop != 320:
            raise ValueError(f"audio.hop: audio.encoder {self.encoder} is defined at hop 320, not {self.hop}")
        return self


class TextSection(Section):
    """The caption encoder and how its token states become one vector."""

    encoder: str = Field(
        default="bert-base-uncased",
        min_length=1,
        description="a hub name or folder of a text model of transformers, `minilm` (extra `small`), or `features`, the vectors "
        "that a data set of `prepare features` holds",
    )
    pooling: Literal["cls", "mean", "max", "model"] = Field(
        default="cls",
        description="the first token's state, the mean or the maximum over the caption's tokens, or what the model itself does: "
        "sentence-transformers' pooling, CLAP's projection",
    )
    normalise: bool = Field(default=True, description="lower case and no punctuation, as the baseline; false leaves captions be")
    finetune: bool = Field(default=True, description="train the encoder too; false embeds every caption once and caches it")
    max_tokens: Positive = Field(default=64, description="captions are cut after this many tokens")


class ModelSection(Section):
    """The shared embedding space and the training strategy of Table 5."""

    dim: Positive = Field(default=512, description="D, the size of the shared embedding")
    heads: Literal["mlp", "none"] = Field(
        default="mlp", description="project both encoders' vectors into the shared space, or take them as they are, of size D"
    )
    head_width: Positive | None = Field(default=None, description="the width inside the projection heads; null is 2D")
    dropout: Fraction = Field(default=0.0, description="dropout inside the projection heads")
    temperature: Rate = Field(default=0.07, description="tau of Eq. 1 and Eq. 8")
    strategy: Literal["gen-dis", "gen", "dis", "joint"] = Field(
        default="gen-dis",
        description="both phases, L_G alone, or phase one alone (Table 5); `joint` trains encoders and denoisers in one phase "
        "under L_D + lambda L_G",
    )


class PretrainSection(Section):
    """Phase one: the encoders under the contrastive loss of Eq. 8."""

    epochs: Positive = 50
    batch_size: Annotated[int, Field(ge=2)] = Field(
        default=32, description="items a batch; 32 for AudioCaps and 24 for Clotho in the paper"
    )
    items: Literal["pairs", "clips"] = Field(
        default="pairs", description="an epoch visits every (clip, caption) pair, or every clip with random captions"
    )
    captions_per_clip: Positive = Field(
        default=1,
        description="with items `clips`: captions drawn for each clip of a batch, all of them positives; one for a composed clip",
    )
    by_length: bool = Field(default=False, description="batches of clips of about one length, so that little is padded")
    compose: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="share of the items that are composed: the clip and one to three others of the training split sound "
        "together or one after another, and their captions are joined; drawn anew every epoch",
    )
    compose_levels: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="dB, the range that the levels of what is composed are drawn from"
    )
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: Rate = Field(default=1e-4, description="(peak) learning rate")
    schedule: Literal["step", "onecycle", "constant"] = Field(
        default="step", description="`step` multiplies by lr_decay every lr_step epochs"
    )
    lr_step: Positive = 20
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Rate = Field(default=2.0, description="gradient norm above which gradients are scaled down")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16 runs forward passes under autocast; `auto` does where the device multiplies bf16 natively",
    )
    generation_weight: Rate = Field(
        default=1.0,
        description="lambda of model.strategy=joint; the batch is the candidates there, and the denoisers have diffusion.lr, on "
        "this section's schedule",
    )
    head_steps: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="after the last epoch, steps that fit the projection heads alone again, on `diffusion.views` augmented "
        "views by the frozen encoders; kept if validation is better for it",
    )
    head_batch: Annotated[int, Field(ge=2)] = Field(default=256, description="clips a batch of those steps")
    head_lr: Rate = Field(default=1e-3, description="learning rate of those steps, falling to nothing by a cosine")
    head_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    head_jitter: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="length of the noise on caption vectors in those steps, as a share of theirs: 1 makes words that no "
        "training caption had fall near those that some had",
    )
    checkpoint_minutes: Rate = Field(
        default=10.0, description="a resumable checkpoint is written at every epoch's end and this often between"
    )


class DiffusionSection(Section):
    """Phase two: the attention denoisers under the generation loss of Eq. 6, on frozen, cached embeddings."""

    objective: Literal["diffusion", "discriminative"] = Field(
        default="diffusion",
        description="`discriminative` trains and asks the same network without diffusion: x_k = 0, one pass, cross-entropy",
    )
    conditioning: Literal["none", "frames"] = Field(
        default="none",
        description="`frames` changes a candidate's vector for each query, by what a caption's tokens find in a clip's frames",
    )
    epochs: Positive = 30
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: Rate = Field(default=1e-3, description="peak learning rate, which falls to nothing by a cosine")
    warmup: Annotated[int, Field(ge=0)] = Field(default=0, description="steps in which the learning rate rises from nothing")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Rate = 2.0
    steps: Positive = Field(default=50, description="K, the length of the Markov chain (Table 6)")
    schedule: Literal["cosine", "linear"] = Field(default="cosine", description="the noise schedule beta_1..beta_K")
    x0_scale: Rate = Field(
        default=1.0, description="x_0 is multiplied by this before noise is added, so that x_k can be seen beside the attention"
    )
    levels: Literal["uniform", "high"] = Field(
        default="uniform", description="noise levels of training: drawn evenly, or `high`, the highest of three draws"
    )
    rollout: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the training queries whose x_k is made of the denoiser's own first answer, not of x_0"
    )
    self_conditioning: bool = Field(
        default=False, description="the denoiser is told its x0_hat of the step before, by a learned factor that starts at zero"
    )
    feedback: Literal["none", "neighbours"] = Field(
        default="none",
        description="`neighbours` adds to x_k, at every step and by a learned factor that starts at zero, its mean over the ten "
        "candidates nearest to each candidate; with objective `discriminative` x_k is zero and nothing comes of it",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="as `pretrain.precision`")
    hidden: Positive = Field(default=512, description="H, the width of the denoising decoder")
    init: Literal["similarity", "random"] = Field(
        default="similarity", description="start Q K^T at cosine / temperature, or at random"
    )
    attention_scale: Literal["none", "sqrt_dim"] = Field(default="none", description="divide Q K^T by sqrt(D), or not as printed")
    input_scale: Literal["sqrt_dim", "none"] = Field(
        default="sqrt_dim", description="unit embeddings enter the denoiser times sqrt(D), or as they are"
    )
    output: Literal["decoder", "add_weight", "add_logit"] = Field(
        default="decoder", description="add the attention weight or logit to the decoder's output"
    )
    x0: Literal["softmax", "clip"] = Field(default="softmax", description="how logits become x0_hat while sampling")
    candidates: Literal["batch"] | Annotated[int, Field(ge=2)] = Field(
        default="batch", description="the batch's items, as the paper, or this many a query"
    )
    negatives: Literal["nearest", "bank", "shared_nearest"] = Field(
        default="nearest",
        description="with a number of candidates: a query's own nearest by cosine; or the batch and, shared by all its queries, "
        "some drawn from the whole training split (`bank`) or from each query's nearest (`shared_nearest`)",
    )
    views: Positive = Field(default=4, description="embeddings of each training clip under augmentation that the cache holds")
    jitter: Annotated[float, Field(ge=0)] = Field(default=0.0, description="noise of this norm added to unit training embeddings")
    folds: Literal[0] | Annotated[int, Field(ge=2)] = Field(
        default=0,
        description="deal the training clips into this many folds, embed each by encoders that phase one trains on the others, "
        "and turn its space onto the encoders' own; 0 takes the encoders' own embeddings of what they were trained on",
    )

    @model_validator(mode="after")
    def _folds_have_no_frames(self) -> Self:
        if self.folds and self.conditioning == "frames":
            raise ValueError(
                "diffusion.folds: each fold has encoders of its own, whose frames compare with no others'; set "
                "diffusion.conditioning=none, or diffusion.folds=0"
            )
        return self

    @model_validator(mode="after")
    def _conditioned_candidates_are_shared(self) -> Self:
        if self.conditioning != "none" and self.candidates != "batch" and self.negatives == "nearest":
            raise ValueError(
                "diffusion.negatives: the queries of a batch share their candidates with diffusion.conditioning=frames; with a "
                "number of diffusion.candidates set it to shared_nearest or bank"
            )
        return self


class EvaluationSection(Section):
    """How scores are made at test time. `evaluate`'s options override it."""

    steps: Positive | None = Field(default=None, description="DDIM steps; null uses all K")
    eta: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="0 is deterministic DDIM, 1 ancestral sampling")
    shortlist: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="re-rank only this many best by cosine; null re-ranks all"
    )
    draws: Positive = Field(default=1, description="noise draws whose x0_hat are averaged")
    fusion_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        description="weights of x0_hat beside the cosine that validation chooses from",
    )
    fusion_shapes: Annotated[tuple[Literal["sum", "log"], ...], Field(min_length=1)] = Field(
        default=("sum", "log"),
        description="how x0_hat may join the cosine, of which validation chooses: added as it is, or its logarithm",
    )
    domains: tuple[str, ...] = Field(
        default=(),
        description="other data sets, prepared in the same folder, whose validation splits choose beside that of data.name: "
        "weights that help one and harm another are not taken",
    )
    bank: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="so many training captions (clips, for audio-to-text) are kept with the model, and candidates that lie near "
        "all of them are held back by as much as validation chooses; 0 keeps none",
    )
    feedback: Literal["none", "walk"] = Field(
        default="none",
        description="`walk` makes `evaluate` rank by a rival too: the cosine, joined by one of these weights and shapes with a "
        "random walk over the ten candidates nearest to each candidate",
    )


class Recipe(Section):
    """A whole experiment: seven sections, each with every field set."""

    data: DataSection = DataSection()
    audio: AudioSection = AudioSection()
    text: TextSection = TextSection()
    model: ModelSection = ModelSection()
    pretrain: PretrainSection = PretrainSection()
    diffusion: DiffusionSection = DiffusionSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _vectors_are_of_both(self) -> Self:
        if (self.audio.encoder == "features") != (self.text.encoder == "features"):
            raise ValueError(
                "audio.encoder: `prepare features` makes vectors of both; set audio.encoder and text.encoder to features"
            )
        return self

    @model_validator(mode="after")
    def _refitting_needs_heads(self) -> Self:
        if self.pretrain.head_steps and self.model.heads == "none":
            raise ValueError("pretrain.head_steps: there are no heads to fit with model.heads=none; set head_steps=0")
        return self

    @model_validator(mode="after")
    def _heads_need_frozen_captions(self) -> Self:
        if self.pretrain.head_steps and (self.text.finetune or self.model.strategy in TRAINS_DENOISERS):
            raise ValueError(
                "pretrain.head_steps: fits heads to frozen encoders under Eq. 8; set text.finetune=false and a model.strategy "
                "other than gen and joint, or head_steps=0"
            )
        return self

    @model_validator(mode="after")
    def _composing_needs_an_encoder_that_learns(self) -> Self:
        if self.pretrain.compose and (self.audio.encoder == "features" or self.audio.finetune is False):
            raise ValueError(
                "pretrain.compose: mixes recordings for an encoder that learns to hear them; with audio.encoder=features or "
                "audio.finetune=false each recording is a vector that stays as it is. Set compose=0, or train an audio encoder"
            )
        return self

    @model_validator(mode="after")
    def _composing_needs_the_contrastive_loss(self) -> Self:
        if self.pretrain.compose and self.model.strategy in TRAINS_DENOISERS:
            raise ValueError(
                "pretrain.compose: a mixture and its parts are neither true nor false for each other, which Eq. 8 can leave out "
                "and x_0 of Eq. 6 cannot; set model.strategy to gen-dis or dis, or compose=0"
            )
        return self

    @model_validator(mode="after")
    def _conditioning_needs_frozen_encoders(self) -> Self:
        if self.diffusion.conditioning != "none" and self.model.strategy in TRAINS_DENOISERS:
            raise ValueError(
                "diffusion.conditioning: frames are those of encoders that phase one has trained; set model.strategy=gen-dis, or "
                "diffusion.conditioning=none"
            )
        if self.diffusion.folds and self.model.strategy in TRAINS_DENOISERS:
            raise ValueError(
                "diffusion.folds: folds are embedded by encoders that phase one has trained; set model.strategy=gen-dis, or "
                "diffusion.folds=0"
            )
        return self

    @model_validator(mode="after")
    def _choices_need_phase_two(self) -> Self:
        if self.evaluation.bank and self.model.strategy != "gen-dis":
            raise ValueError("evaluation.bank: is fitted in phase two; set model.strategy=gen-dis, or evaluation.bank=0")
        if self.evaluation.domains and self.model.strategy != "gen-dis":
            raise ValueError("evaluation.domains: choose in phase two; set model.strategy=gen-dis, or evaluation.domains=[]")
        return self

    @model_validator(mode="after")
    def _steps_within_chain(self) -> Self:
        steps = self.evaluation.steps
        if steps is not None and steps > self.diffusion.steps:
            raise ValueError(f"evaluation.steps: {steps} steps do not fit in the chain, diffusion.steps = {self.diffusion.steps}")
        return self
