"""A data set of tones, a BERT of random weights and a recipe for both: small enough to train within a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from diffatr_cli.data.manifest import Record, write_manifest
from diffatr_cli.types import SAMPLE_RATE

TONES = {"low": 150.0, "middle": 900.0, "high": 5000.0, "hiss": 0.0}  # Hz; 0 is noise
WORDS = ("a", "tone", "sound", "plays", "first", "second", *TONES)


def make_data(
    folder: Path,
    name: str = "tones",
    sizes: tuple[int, int, int] = (24, 8, 8),
    seed: int = 0,
    seconds: tuple[float, float] = (0.6, 1.0),
) -> None:
    """Write `folder/name`: clips of 0.6 to 1 s, one of four kinds each, two captions a clip."""
    rng = np.random.default_rng(seed)
    records = []
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        for i in range(size):
            kind = list(TONES)[i % len(TONES)]
            frames = int(rng.integers(round(10 * seconds[0]), round(10 * seconds[1]) + 1)) * SAMPLE_RATE // 10
            wave = rng.normal(0, 0.01 if TONES[kind] else 0.3, frames)
            if TONES[kind]:
                wave += 0.5 * np.sin(2 * np.pi * TONES[kind] * rng.uniform(0.9, 1.1) * np.arange(frames) / SAMPLE_RATE)
            path = f"{split}/{i}.wav"
            (folder / name / split).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name / path, np.clip(wave, -1, 1), SAMPLE_RATE, subtype="PCM_16")
            captions = (f"A {kind} tone plays.", f"{kind} sound, {'first' if i % 2 else 'second'}")
            records.append(Record(f"{split}/{i}", split, captions, path, frames=frames, md5=f"{split}{i}{seed}"))
    write_manifest(folder / name, records, {"kind": "tones"})


def make_bert(folder: Path) -> Path:
    """Write a BERT of two tiny layers with random weights, and its vocabulary; returns the folder."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def recipe_text(bert: Path, name: str = "tones") -> str:
    """A recipe file that trains on `make_data` in about a second an epoch."""
    return f"""
data: {{name: {name}, seconds: 0.8}}
audio: {{encoder: small, hop: 640, channels: [8, 16], spec_augment: true, time_stripe: 4, mel_stripe: 8, dropout: 0.1}}
text: {{encoder: "{bert}", pooling: mean, finetune: false, max_tokens: 16}}
model: {{dim: 16}}
pretrain: {{epochs: 4, batch_size: 8, optimizer: adamw, lr: 0.01, schedule: onecycle, precision: fp32}}
diffusion: {{epochs: 3, batch_size: 8, hidden: 16, steps: 10, views: 2, lr: 0.01, precision: fp32}}
"""


def tiny_fields(root: Path) -> list[str]:
    """Fields that make the scenes' recipes as small, on the BERT in `root`/bert."""
    return [
        "data.seconds=0.8", "audio.channels=[8, 16]", "audio.time_stripe=4", f"text.encoder={root / 'bert'}", "model.dim=16",
        "pretrain.epochs=2", "pretrain.precision=fp32", "diffusion.epochs=2", "diffusion.hidden=16", "diffusion.views=2",
        "diffusion.precision=fp32", "pretrain.batch_size=8", "diffusion.batch_size=8",
    ]  # fmt: skip
