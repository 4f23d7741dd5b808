"""On a CUDA GPU: sampling and what it is made of, the encoders, embedding many clips, an index, and epochs of phase one.

`python -m benchmarks --only gpu` takes at most four minutes, and without a GPU says so and does nothing. Peak memory is that of
the GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch

from diffatr_cli.core import fused
from diffatr_cli.core import sampler as sampling
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.inference import BATCH_SAMPLES, optimise_for_inference, pooled_features
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.recorded import FROM, record_cuda
from diffatr_cli.core.sampler import fast_ddim_sample
from diffatr_cli.core.text import CaptionEncoder
from diffatr_cli.core.towers import ProjectionHead
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.device import embedding_dtype
from diffatr_cli.model import Retriever
from diffatr_cli.types import SAMPLE_RATE

from . import encoders, sampler, training
from .common import Case, Row, Size, Skip, medians, pick, seconds

NO_GPU = (
    "no CUDA GPU here. These figures wait for one: tests run the kernels in Triton's interpreter and compile them for GPUs, and "
    "nothing was timed"
)
MILLION = 1_000_000


def decoder(size: Size, device: str) -> list[Row]:
    """One step's decoder over all pairs, compiled and by torch's operations, and how far its sums are from float64's."""
    side = pick(size, 20, 1000, 1000)
    hidden = pick(size, 16, 512, 512)
    generator = torch.Generator().manual_seed(0)
    shapes = (1, side, hidden), (1, side, hidden), (hidden,), (1,)
    inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    def eager() -> torch.Tensor:
        with mock.patch.object(fused, "_compiled_maxima", return_value=None):
            return fused.decode(*inputs)

    took = medians({"here": partial(fused.decode, *inputs), "plain": eager}, pick(size, 1, 7, 20), device)
    few = [each[:, :5] if each.ndim == 3 else each for each in inputs]
    exact = fused.decode(*[each.cpu().double() for each in few])
    error = (fused.decode(*few).cpu() - exact).abs().max() / exact.abs().max()
    operations = 3 * side * side * hidden / 1e9
    what = f"decoder, {side:,} queries over {side:,}"
    remark = f"plain: torch's own operations; relative error {error:.0e}"
    rows = [Row(what, operations / took["here"], operations / took["plain"], "Gop/s", remark=remark)]
    return [*rows, issue_share(inputs, what, pick(size, 1, 20, 100))] if device == "cuda" else rows


LANES = 128  # of a multiprocessor that can be given an instruction in one cycle: four warps
INSTRUCTIONS = 2  # of a term of the decoder: a maximum and a multiply-add


def issue_share(inputs: list[torch.Tensor], what: str, rounds: int) -> Row:
    """How much of the instructions that the GPU can issue are the decoder's maxima and multiply-adds, replayed many times."""
    replay, _ = record_cuda(fused.decode, tuple(inputs))

    def many() -> None:
        for _ in range(rounds):
            replay()

    seconds(many, "cuda")
    many()
    hertz = clock()  # while it works: it is lower at rest
    took = seconds(many, "cuda") / rounds
    candidates, hidden, weight, _ = inputs
    terms = candidates.shape[0] * candidates.shape[1] * hidden.shape[1] * len(weight) / took
    possible = LANES * torch.cuda.get_device_properties(0).multi_processor_count * hertz / INSTRUCTIONS
    remark = f"{terms:.2e} terms/s of {possible:.2e} at {hertz / 1e6:.0f} MHz; a call takes {1e6 * took:.0f} us"
    return Row(f"{what}, share of the issue rate", 100 * terms / possible, unit="%", goal="goal: at least 40 %", remark=remark)


def clock() -> float:
    """Cycles a second of the GPU's multiprocessors now; at most, where nothing tells what they are now."""
    try:
        return torch.cuda.clock_rate() * 1e6
    except (ModuleNotFoundError, RuntimeError):  # there is no pynvml
        return getattr(torch.cuda.get_device_properties(0), "clock_rate", float("nan")) * 1e3


def noise(size: Size, device: str) -> list[Row]:
    """The start noise of AudioCaps' captions, drawn on the device, and drawn on the processor and copied."""
    queries, n = sampler.AUDIOCAPS[size]
    ways = {
        "here": lambda: query_noise(0, range(queries), n, device=device)(0),
        "plain": lambda: query_noise(0, range(queries), n)(0).to(device),
    }
    took = medians(ways, pick(size, 1, 3, 7), device)
    off = (ways["here"]() - ways["plain"]()).abs().max().item()
    remark = f"plain: drawn on the processor and copied; {off:.0e} apart at most"
    return [Row(f"noise, {queries:,} x {n:,}", took["here"], took["plain"], remark=remark)]


def replays(size: Size, device: str, counts: tuple[int, ...] = (1_000, 100_000)) -> list[Row]:
    """One query over as many candidates as the counts say, its steps replayed, and launched operation by operation."""
    rows = []
    for n in pick(size, (10,), (1_000,), counts):
        task = sampler.make_task(size, 1, n, device=device)
        prepared = FactoredDenoiser(task.denoiser).prepare(task.candidates)
        start = torch.randn(1, n, device=device)
        run = partial(fast_ddim_sample, task.denoiser, task.query, prepared, task.schedule, noise=start)

        def launched(run: Callable[[], torch.Tensor] = run) -> torch.Tensor:
            with mock.patch.object(sampling, "replays_on", return_value=False):
                return run()

        for _ in range(FROM):
            run()
        took = medians({"here": run, "plain": launched}, pick(size, 1, 5, 9), device)
        expected = launched()
        off, largest = (run() - expected).abs().max().item(), expected.max().item()
        remark = f"plain: launched operation by operation; {off:.0e} apart at most, where the largest is {largest:.0e}"
        goal = "goal: within 0.05 s" if n == MILLION else ""
        rows.append(Row(f"1 query over {n:,}, {sampler.STEPS} steps", took["here"], took["plain"], goal=goal, remark=remark))
    return rows


def halves(size: Size, device: str) -> list[Row]:
    """How far x0_hat of one query over many lies from float64's, with tables read as they are on this device."""
    task = sampler.make_task(size, 1, pick(size, 10, 1_000, 100_000), device=device)
    start = torch.randn(1, len(task.candidates), device=device)
    exact = deepcopy(task.denoiser).double()
    with mock.patch.multiple(fused, _compiled_maxima=lambda *_: None, _on_triton=lambda *_: False):  # by torch's operations
        inputs = exact, task.query.double(), task.candidates.double(), task.schedule
        expected = fast_ddim_sample(*inputs, noise=start.double())
    prepared = FactoredDenoiser(task.denoiser).prepare(task.candidates)
    off = (fast_ddim_sample(task.denoiser, task.query, prepared, task.schedule, noise=start) - expected).abs().max().item()
    what = f"1 query over {len(task.candidates):,}, {sampler.STEPS} steps, from float64"
    read = "in half precision" if "halves" in prepared.__dict__ else "in full"
    remark = f"tables read {read}; the largest x0_hat is {expected.max().item():.0e}"
    return [Row(what, off, unit="off", goal="goal: at most 1e-4", remark=remark)]


def embedding(size: Size, device: str) -> list[Row]:
    """Clips of ten seconds from the processor's memory to features there, as an index makes them, and four at a time."""
    clips, name = pick(size, 3, 64, 256), pick(size, "small", "CNN14", "CNN14")
    generator = torch.Generator().manual_seed(0)
    waves = list(0.1 * torch.randn(clips, SAMPLE_RATE * pick(size, 1, 10, 10), generator=generator))
    torch.manual_seed(0)
    plain = encoders.lived_in(encoders.ENCODERS[name]()).to(device)
    encoder = optimise_for_inference(plain, embedding_dtype(torch.device(device)))
    embed = partial(pooled_features, encoder, waves, level=True)
    ways = {"here": embed, "plain": partial(embed, BATCH_SAMPLES)}
    took = medians(ways, pick(size, 1, 2, 3), device)
    remark = "plain: in batches of four"
    return [Row(f"{name}, {clips} clips", clips / took["here"], clips / took["plain"], "clips/s", remark=remark)]


def indexing(size: Size, device: str) -> list[Row]:
    """How busy `index` keeps the GPU, as `nvidia-smi` sees it: local recordings read, decoded, embedded by CNN14, and kept.

    They are mono WAV at the encoder's rate, which cost the processor least: minutes, and clips, which cost this process more.
    """
    dim = 512
    torch.manual_seed(0)
    encoder = encoders.lived_in(encoders.ENCODERS[pick(size, "small", "CNN14", "CNN14")]())
    heads = ProjectionHead(encoder.features, dim), ProjectionHead(1, dim)
    model = Retriever(heads, lambda: encoder, no_captions, dim, "benchmark", None, None, torch.device(device))
    rng = np.random.default_rng(0)
    rows = []
    for count, length in ((pick(size, 1, 60, 800), pick(size, 1, 60, 60)), (pick(size, 1, 600, 8_000), pick(size, 1, 10, 10))):
        with tempfile.TemporaryDirectory() as name:
            files = Path(name) / "recordings"
            files.mkdir()
            samples = 0.1 * rng.standard_normal(SAMPLE_RATE * length, dtype=np.float32)
            for i in range(count):
                samples[:100] = 0.1 * rng.standard_normal(100, dtype=np.float32)  # or it would be embedded once
                soundfile.write(files / f"{i:04d}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
            model.embed_audio([samples] * pick(size, 1, 64, 64))  # compiled and loaded before
            with busy() as shares:
                took = seconds(lambda at=Path(name): FolderIndex(at / "recordings", at / "index").update(model), device)
        what = f"index {count:,} recordings of {length} s"
        rows.append(Row(what, count / took, unit="files/s"))
        if shares:
            remark = f"the mean of {len(shares)} looks, from the first kernel to the last; at most {max(shares):.0f} %"
            rows.append(Row(f"{what}: GPU busy", float(np.mean(shares)), unit="%", goal="goal: above 80 %", remark=remark))
    return rows


def no_captions() -> CaptionEncoder:
    """For a model that is asked for none."""
    raise NotImplementedError


@contextmanager
def busy() -> Iterator[list[float]]:
    """Filled at the end: in which percentage of the time the GPU was at work, ten times a second, while it had anything to do.

    Empty where there is no `nvidia-smi`.
    """
    shares: list[float] = []
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
    if shutil.which(query[0]) is None:
        yield shares
        return
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as looking:
        try:
            yield shares
        finally:
            looking.terminate()
        printed, _ = looking.communicate()
    looks = [float(line) for line in printed.split() if line.isdigit()]
    at_work = [place for place, share in enumerate(looks) if share]
    shares += looks[at_work[0] : at_work[-1] + 1] if at_work else []


MEASURED: dict[str, Callable[..., list[Row]]] = {
    "decoder": decoder,
    "noise": noise,
    "precision": sampler.precision,
    "precision of halves": halves,
    "replays": replays,
    "replays, a million": partial(replays, counts=(MILLION,)),
    "AudioCaps": sampler.audiocaps,
    "operations": sampler.operations,
    **{name: partial(encoders.encoder, name) for name in encoders.ENCODERS},
    "embedding": embedding,
    "indexing": indexing,
    "encoders' precision": encoders.bf16_against_fp32,
    "phase one": training.phase_one,
    "phase one, CNN14": partial(training.phase_one, overrides=training.CNN14),
}
"""What is measured, as a function of the size and the device."""


def on_gpu(measure: Callable[..., list[Row]], size: Size) -> list[Row]:
    """Run a benchmark on the GPU."""
    if not torch.cuda.is_available():
        raise Skip(NO_GPU)
    return measure(size=size, device="cuda")


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {name: partial(on_gpu, measure) for name, measure in MEASURED.items()}
