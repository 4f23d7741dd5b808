"""A CLAP as it is (`--model`), as large as laion/clap-htsat-unfused, of random weights: what indexing a folder by it costs.

The plain version is a loop over `transformers`: decode a file, bring it to the rate, cut the same windows, and embed batches
of as many, on the same threads.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from diffatr_cli.corpus.batches import BATCH
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.two_tower import load_two_tower

from .common import Case, Row, Size, medians, pick
from .index import make_recordings


def make_model(folder: Path, size: Size) -> Path:
    """A CLAP with its feature extractor, without a tokenizer, which indexing does not need."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tiny = {"depths": [1, 1, 1, 1], "patch_embeds_hidden_size": 16, "hidden_size": 128, "num_attention_heads": [1, 1, 2, 2]}
    audio: dict[str, Any] = pick(size, tiny, {}, {})
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio)).save_pretrained(folder)
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return folder


def bare_loop(model: Any, extractor: Any, files: list[Path]) -> np.ndarray:
    """Vectors of all windows of all files, as someone writes it who knows `transformers`."""
    rate, window = 48_000, 480_000
    waiting: list[np.ndarray] = []
    vectors: list[np.ndarray] = []

    def embed() -> None:
        inputs = extractor(waiting, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            out = model.get_audio_features(input_features=inputs["input_features"], is_longer=inputs["is_longer"])
        vectors.extend(out.pooler_output.numpy())
        waiting.clear()

    for path in files:
        samples, own = soundfile.read(path, dtype="float32", always_2d=True)
        wave = soxr.resample(samples.mean(1), own, rate)
        starts = [*range(0, len(wave) - window, window // 2), len(wave) - window] if len(wave) > window else [0]
        for start in starts:
            waiting.append(wave[start : start + window])
            if len(waiting) == BATCH:
                embed()
    if waiting:
        embed()
    return np.array(vectors)


def index(size: Size) -> list[Row]:
    """Index a folder of recordings by a CLAP."""
    from transformers import ClapFeatureExtractor, ClapModel

    count, length = pick(size, (2, 11.0), (4, 40.0), (16, 60.0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clap = make_model(folder / "clap", size)
        files = sorted(make_recordings(folder / "recordings", count, length).iterdir())
        model, extractor = ClapModel.from_pretrained(clap).eval(), ClapFeatureExtractor.from_pretrained(clap)
        ours = load_two_tower(str(clap), "cpu")
        turn = 0

        def indexed() -> int:
            nonlocal turn
            turn += 1
            return FolderIndex(folder / "recordings", folder / f"index-{turn}").update(ours).windows

        if indexed() != len(bare_loop(model, extractor, files)):
            raise RuntimeError("the two cut other windows")
        took = medians({"ours": indexed, "plain": lambda: bare_loop(model, extractor, files)}, pick(size, 1, 2, 3))
    what = f"index {count} recordings of {length:.0f} s by a CLAP"
    return [Row(what, took["ours"], took["plain"], goal="goal: at most 1.1 times the loop's time", remark="the model is loaded")]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"index": index}
