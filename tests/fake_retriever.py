"""A retriever without training: sounds by their spectrum, and texts such as "440 Hz" as the tone that they name."""

import hashlib
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile

from diffatr_cli.core.windows import OURS

RATE = 32000
DIM = 16


def tone(hz, seconds, seed=0):
    """A sine with a little noise, which makes the content of each seed its own; 32 kHz float32."""
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.01, len(t))
    return (0.5 * np.sin(2 * np.pi * hz * t) + noise).astype(np.float32)


def write_tone(path, hz, seconds, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    # As bytes: soundfile takes text names for UTF-8 only.
    soundfile.write(os.fsencode(path), tone(hz, seconds, seed), RATE, format=path.suffix[1:].upper())


def make_reranker(dim=DIM, weight=0.7, **sampling):
    """Untrained denoisers of both directions in a chain of 10, sampled with eta 0.5; without a weight x0_hat ranks alone."""
    import torch

    from diffatr_cli.core.denoiser import AttentionDenoiser
    from diffatr_cli.core.sampling import Sampling
    from diffatr_cli.core.schedule import NoiseSchedule
    from diffatr_cli.core.scoring import Reranker

    denoisers = {
        direction: AttentionDenoiser(dim, 24, output="add_logit", generator=torch.Generator().manual_seed(0)).eval()
        for direction in ("t2a", "a2t")
    }
    weights = {} if weight is None else dict.fromkeys(denoisers, weight)
    return Reranker(denoisers, NoiseSchedule.cosine(10), Sampling(**{"eta": 0.5} | sampling), weights)


class FakeRetriever:
    """Has what `model.Retriever` has; counts the windows it embeds."""

    device = "cpu"
    name = "fake"
    windowing = OURS
    calibration = None
    bank = None
    kinds = None
    given_sizes = None
    sees_frames = False

    def __init__(self, model_id="model-a", dim=DIM, phase_two=False):
        self.model_id, self.dim, self.embedded = model_id, dim, 0
        self.projection = np.random.default_rng(len(model_id)).normal(size=(40, dim))
        self.reranker = make_reranker(dim) if phase_two else None

    def reweigh(self, weight):
        self.reweighed, self.reranker, self.calibration = weight, make_reranker(self.dim, weight), None

    def _embed(self, waveform):
        if len(waveform) < 1024:
            waveform = np.pad(waveform, (0, 1024 - len(waveform)))
        frames = waveform[: len(waveform) // 1024 * 1024].reshape(-1, 1024)
        power = (np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2).mean(0)
        edges = np.geomspace(1, 513, 41)
        bands = np.array([power[int(a) : max(int(b), int(a) + 1)].mean() for a, b in itertools.pairwise(edges)])
        vector = np.sqrt(bands + 1e-6) @ self.projection
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def embed_audio(self, waveforms):
        self.embedded += len(waveforms)
        return np.stack([self._embed(waveform) for waveform in waveforms])

    def pool_text(self, captions):
        return self.embed_text(captions)

    def embed_and_pool_text(self, captions):
        return self.embed_text(captions), self.pool_text(captions)

    def embed_text(self, captions):
        return np.stack([self._embed(tone(float(caption.split()[0]), 1)) for caption in captions])


def contents(index):
    """Everything an index holds, row by row, in an order that does not depend on its history."""
    import lancedb

    db = lancedb.connect(index.folder)
    tables = {name: db.open_table(name).to_arrow().to_pylist() for name in db.list_tables().tables}
    for rows in tables.values():
        for row in rows:
            for name in ("ctime_ns", "inode", "checksum"):  # of the very file, and not of its content
                row.pop(name, None)
            if "vector" in row:
                row["vector"] = hashlib.sha256(np.array(row["vector"], np.float16).tobytes()).hexdigest()
    return {name: sorted(map(str, rows)) for name, rows in tables.items()}


def as_the_last_version_wrote_it(index):
    """Rewrite an index in the form of before: no ctime, inode, reader and checksums, and no notes."""
    import lancedb

    for path in [*index.folder.glob("*.checksums"), *index.folder.glob("snapshot-*")]:
        path.unlink()
    db = lancedb.connect(index.folder)
    for name in db.list_tables().tables:
        rows = db.open_table(name).to_arrow()
        shutil.rmtree(index.folder / f"{name}.lance")
        if name.startswith("notes-"):
            continue
        db.create_table(
            name, rows.drop_columns([c for c in ("ctime_ns", "inode", "missing", "reader", "checksum") if c in rows.schema.names])
        )


if __name__ == "__main__":  # a process for the tests to kill: python fake_retriever.py CORPUS INDEX
    import sys
    import time

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from diffatr_cli.corpus import batches, commits
    from diffatr_cli.corpus.index import FolderIndex

    class Slow(FakeRetriever):
        def embed_audio(self, waveforms):
            time.sleep(0.005)
            return super().embed_audio(waveforms)

    commits._COMMIT_SECONDS, batches.BATCH = 0.0, 1
    corpus, folder = map(Path, sys.argv[1:])
    folder_index = FolderIndex(corpus, folder)
    print("ready", flush=True)
    folder_index.update(Slow())
    print("done", flush=True)
