"""On a CUDA GPU: sampling and what it is made of, the encoders, embedding many clips, and epochs of phase one.

`python -m benchmarks --only gpu` takes at most four minutes, and without a GPU says so and does nothing. Peak memory is that of
the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

from diffatr_cli.core import fused
from diffatr_cli.core import sampler as sampling
from diffatr_cli.core.factored import FactoredDenoiser
from diffatr_cli.core.inference import BATCH_SAMPLES, optimise_for_inference, pooled_features
from diffatr_cli.core.noise import query_noise
from diffatr_cli.core.recorded import FROM
from diffatr_cli.core.sampler import fast_ddim_sample
from diffatr_cli.device import embedding_dtype
from diffatr_cli.types import SAMPLE_RATE

from . import encoders, sampler, training
from .common import Case, Row, Size, Skip, medians, pick

NO_GPU = (
    "no CUDA GPU here. These figures wait for one: tests run the kernels in Triton's interpreter and compile them for GPUs, and "
    "nothing was timed"
)


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
    return [Row(what, operations / took["here"], operations / took["plain"], "Gop/s", remark=remark)]


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


def replays(size: Size, device: str) -> list[Row]:
    """One query, its steps replayed, and launched operation by operation."""
    rows = []
    for n in pick(size, (10,), (1_000,), (1_000, 100_000)):
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
        off = (run() - launched()).abs().max().item()
        remark = f"plain: launched operation by operation; {off:.0e} apart at most"
        rows.append(Row(f"1 query over {n:,}, {sampler.STEPS} steps", took["here"], took["plain"], remark=remark))
    return rows


def embedding(size: Size, device: str) -> list[Row]:
    """Clips of ten seconds from the processor's memory to features there, as an index makes them, and four at a time."""
    clips, name = pick(size, 3, 64, 256), pick(size, "small", "CNN14", "CNN14")
    generator = torch.Generator().manual_seed(0)
    waves = list(0.1 * torch.randn(clips, SAMPLE_RATE * pick(size, 1, 10, 10), generator=generator))
    torch.manual_seed(0)
    plain = encoders.lived_in(encoders.ENCODERS[name]()).to(device)
    encoder = optimise_for_inference(plain, embedding_dtype(torch.device(device)))
    ways = {"here": partial(pooled_features, encoder, waves), "plain": partial(pooled_features, encoder, waves, BATCH_SAMPLES)}
    took = medians(ways, pick(size, 1, 2, 3), device)
    remark = "plain: in batches of four"
    return [Row(f"{name}, {clips} clips", clips / took["here"], clips / took["plain"], "clips/s", remark=remark)]


MEASURED: dict[str, Callable[..., list[Row]]] = {
    "decoder": decoder,
    "noise": noise,
    "precision": sampler.precision,
    "replays": replays,
    "AudioCaps": sampler.audiocaps,
    "operations": sampler.operations,
    **{name: partial(encoders.encoder, name) for name in encoders.ENCODERS},
    "embedding": embedding,
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
