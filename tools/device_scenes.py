"""Compose data sets of tens of thousands of scenes where they are trained on: as log-mels on a GPU, without a waveform.

    python tools/device_scenes.py pack --composer PATH/make_scenes.py --audiocaps 50000 --clotho 10000 --small 4000 --out PACK
    python tools/device_scenes.py unpack PACK --data DATA --device cuda

A GPU is often at hand for minutes alone, on a machine that the recordings never reach. So `pack` writes what is needed, some
30 MB: the log-mel of each training recording once, in steps of 1 dB, and for each scene which pieces of which recordings lie
where, how loud, and its captions. `unpack` adds up their powers, which is exact up to the cross terms of the waveforms
(`core.mixing.mix_logmels`), and leaves prepared data sets whose log-mels are cached: `pretrain` and `train-diffusion` then run
as ever. Validation clips travel as they are (`--val`).

The composer's own functions draw the scenes: they are given recorders in the place of arrays, which note what is added where.

S sources, E events, C clips, T frames, M mels.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch
from compose_small import (
    BLEND_LEVEL,
    BLEND_SECONDS,
    BLEND_SPEED,
    BLENDS,
    PROCEDURAL,
    SHARE,
    by_recording,
    even,
    load_composer,
    phrases,
    phrases_of,
    read_composer,
    without_held_out,
)
from torch import Tensor

from diffatr_cli.core.level import LEVEL, SILENT
from diffatr_cli.core.logmel import FLOOR, N_MELS, SILENCE, WINDOW, LogMel
from diffatr_cli.data.audio import load_audio
from diffatr_cli.data.logmels import STEPS_PER_DB, write_logmels
from diffatr_cli.data.manifest import Record, load_dataset, read_manifest, write_manifest
from diffatr_cli.data.sounds import KINDS, render
from diffatr_cli.types import SAMPLE_RATE

HOP = 640
STEP = 1.0  # dB, of a packed log-mel
LEVEL_STEP = 0.5  # dB
CHUNK = 256  # clips composed at a time
NOISE = "noise"
NOISE_SECONDS = 20
NOISE_LEVELS = (-4, -2.7)  # powers of ten, of the white noise under a scene
SINGLE_SECONDS = (1.5, 6)
TENTH = SAMPLE_RATE // 10 // HOP  # frames of a tenth of a second


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording, in the place of its samples: `composer` code multiplies, cuts, pads and repeats it."""

    source: str
    start: int
    length: int
    repeated: int = 0  # samples that it fills by repeating itself; 0 for once
    gain: float = 1.0
    speed: float = 1.0

    def __len__(self) -> int:
        return self.repeated or self.length

    def __getitem__(self, part: slice) -> Piece:
        size = len(range(*part.indices(len(self))))
        assert not part.start
        return replace(self, repeated=size) if self.repeated else replace(self, length=size)

    def __mul__(self, gain: float) -> Piece:
        return replace(self, gain=self.gain * gain)

    __rmul__ = __mul__

    def filling(self, samples: int) -> Piece:
        """Repeated, or cut, to so many samples."""
        return self[:samples] if samples <= self.length else replace(self, repeated=samples)


@dataclass
class Recorder:
    """What is added to an array of so many samples, in the place of the array."""

    samples: int
    at: int = 0
    added: list[tuple[int, Piece]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.samples

    def __iadd__(self, other: Piece | Recorder) -> Recorder:
        self.added += [(self.at, other)] if isinstance(other, Piece) else other.added
        return self

    def __mul__(self, gain: float) -> Recorder:
        return Recorder(self.samples, self.at, [(at, piece * gain) for at, piece in self.added])

    __rmul__ = __mul__

    def __getitem__(self, part: slice) -> Recorder:
        return Recorder(self.samples, part.start, self.added)

    def __setitem__(self, part: slice, view: Recorder) -> None:
        """What `array[part] += piece` ends with; the piece is noted already."""


class Sources:
    """The recordings of a composer's training split, known by their lengths."""

    def __init__(self, composer: ModuleType) -> None:
        self.composer = composer
        self.lengths: dict[str, int] = {}

    def whole(self, path: Path) -> Piece:
        """A recording as it is, or the part of it that belongs to training."""
        name = str(path)
        if name not in self.lengths:
            info = soundfile.info(name)
            self.lengths[name] = int(info.frames * SAMPLE_RATE / info.samplerate)
        length, start = self.lengths[name], 0
        if path.parent.name == "ambience":
            low, high = self.composer.SPAN["train"]
            start, length = int(low * length), int(high * length) - int(low * length)
        return Piece(name, start, length)

    def take(self, rng: random.Random, label: str, split: str, seconds: float) -> Piece:
        """A piece of one recording of a kind, as the composer's `take` draws it."""
        composer = self.composer
        ambience, files = (
            composer.EVENTS[label][0],
            composer.urban_files(split).get(label, []) + composer.effect_files(label, split),
        )
        if files and (not ambience or rng.random() < 0.85):
            piece = self.whole(rng.choice(files))
        else:
            piece = self.whole(composer.DATA / "ambience" / (rng.choice(ambience) + ".ogg"))
        wanted = int(seconds * SAMPLE_RATE)
        if piece.length <= wanted:
            return piece
        return Piece(piece.source, piece.start + rng.randrange(piece.length - wanted + 1), wanted)


@dataclass(frozen=True)
class Made:
    """A clip: its length in samples, the pieces at their places, its captions, and the level of white noise under it."""

    samples: int
    pieces: list[tuple[int, Piece]]
    captions: list[str]
    noise: float = 0.0


def recording(composer: ModuleType) -> Sources:
    """Make a composer draw scenes as pieces of its recordings."""
    sources = Sources(composer)
    composer.take = sources.take  # type: ignore[attr-defined]
    composer.loop_to = lambda piece, samples: Recorder(samples, 0, [(0, piece.filling(samples))])  # type: ignore[attr-defined]
    composer.np = SimpleNamespace(zeros=lambda samples, *_: Recorder(samples), pad=lambda piece, _: piece)  # type: ignore[attr-defined]
    return sources


def scenes(composer: ModuleType, layout: str, count: int, captions: int, seed: str) -> Iterator[Made]:
    """Scenes of the training split in a layout, with so many captions each, or fewer where they repeat themselves."""
    for i in range(count):
        rng = random.Random(f"{layout}/{i}/{seed}")
        made, caption, _ = getattr(composer, f"{layout}_scene")(rng, "train")
        said = list(dict.fromkeys(caption() for _ in range(4 * captions)))[:captions]
        yield Made(len(made), made.added, said, 10 ** rng.uniform(*NOISE_LEVELS))


def small(composer: ModuleType, sources: Sources, count: int, singles: int, blends: int, evened: bool) -> Iterator[Made]:
    """The parts of `compose_small.py`: `count` scenes in AudioCaps' layout, a third as many in Clotho's, and so many others."""
    files_of = composer.urban_files
    if evened:
        composer.urban_files = cache(  # type: ignore[attr-defined]
            lambda split: {label: even(files, *SHARE[split]) for label, files in files_of(split).items()}
        )
    yield from scenes(composer, "audiocaps", count, 5, "small")
    yield from scenes(composer, "clotho", count // 3, 5, "small")
    rng = random.Random("small")
    for label in composer.kinds("train"):
        says = phrases_of(composer, label)
        files = [*composer.urban_files("train").get(label, []), *composer.effect_files(label, "train")]
        pieces = [sources.whole(file) for file in files]
        pieces += [sources.take(rng, label, "train", rng.uniform(*SINGLE_SECONDS)) for _ in range(singles)]
        yield from (Made(len(piece), [(0, piece)], says) for piece in pieces)
    for label, files in composer.urban_files("train").items():
        says = phrases_of(composer, label)
        recordings = by_recording(files)
        for _ in range(blends):
            pieces = []
            for name, level in zip(rng.sample(sorted(recordings), 2), (0, rng.uniform(*BLEND_LEVEL)), strict=True):
                piece, speed = sources.whole(rng.choice(recordings[name])), rng.uniform(*BLEND_SPEED)
                heard, whole = int(len(piece) / speed), BLEND_SECONDS * SAMPLE_RATE
                start = rng.randrange(max(1, whole - heard))
                length = min(heard, whole - start)
                pieces.append((start, Piece(piece.source, piece.start, length, 0, 0.6 * 10 ** (level / 20), speed)))
            yield Made(BLEND_SECONDS * SAMPLE_RATE, pieces, says)
    for kind in KINDS:
        says = phrases(without_held_out(KINDS[kind].captions))
        for i in range(PROCEDURAL["train"]):
            name = f"{kind}:{i}"
            sources.lengths[name] = len(procedural(name))
            yield Made(sources.lengths[name], [(0, Piece(name, 0, sources.lengths[name]))], says)


@cache
def procedural(name: str) -> np.ndarray:
    """A synthetic sound by its kind and number, those of `compose_small.py`."""
    kind, i = name.rsplit(":", 1)
    generator = np.random.default_rng([zlib.crc32(kind.encode()), int(i), 0])
    return np.asarray(render(kind, generator, float(generator.uniform(2, 6))), np.float32)


class Table:
    """The packed log-mels of sources, and the level and the loudest sample of what lies between a frame and the next."""

    def __init__(self, composer: ModuleType) -> None:
        self.composer, self.log_mel = composer, LogMel(HOP)
        self.first: dict[str, int] = {}
        self.frames = 0
        self.values: list[np.ndarray] = []
        self.levels: list[np.ndarray] = []
        self.peaks: dict[str, np.ndarray] = {}

    def place(self, name: str) -> int:
        """The row at which a source begins; it is read when it is asked for first."""
        if name not in self.first:
            if name == NOISE:
                wave = np.random.default_rng(0).standard_normal(NOISE_SECONDS * SAMPLE_RATE).astype(np.float32)
            else:
                wave = procedural(name) if ":" in Path(name).name else self.composer.load(name)
            frames = len(wave) // HOP + 1
            hops = np.pad(wave, (0, frames * HOP - len(wave))).reshape(frames, HOP)
            self.peaks[name] = np.maximum(np.abs(hops).max(1), 1e-4)
            level = 10 * np.log10(np.square(hops).mean(1) + 1e-12)
            self.levels.append(np.clip(np.round((level - SILENCE) / LEVEL_STEP), 0, 255).astype(np.uint8))
            wave = np.pad(wave, (0, max(0, WINDOW - len(wave))))
            logmel = self.log_mel(torch.from_numpy(wave)[None])[0].numpy()[:frames]
            self.first[name] = self.frames
            self.frames += frames
            self.values.append(np.clip(np.round((logmel - SILENCE) / STEP), 0, 255).astype(np.uint8))
        return self.first[name]

    def event(self, at: int, piece: Piece) -> tuple[int, ...]:
        """(row, samples of the source, place, frames in the clip, gain, speed), the last two in thousandths of a dB and of 1."""
        row = self.place(piece.source)
        peaks = self.peaks[piece.source]
        start = min(piece.start // HOP, len(peaks) - 1)
        length = int(min(max(HOP, piece.length * piece.speed), HOP * (len(peaks) - start)))
        gain = 20 * np.log10(piece.gain / (1 if piece.source == NOISE else peaks[start : start + -(-length // HOP)].max()))
        return row + start, length, at // HOP, max(1, len(piece) // HOP), round(1000 * gain), round(1000 * piece.speed)


def pack(options: argparse.Namespace) -> None:
    """Write the sources, the events and the captions of all data sets that are asked for."""
    plain = read_composer(options.composer)
    recording(plain)
    sets: dict[str, Iterator[Made]] = {}
    table, seed = Table(read_composer(options.composer)), f"device-{options.seed}"
    if options.audiocaps:
        sets["scenes-audiocaps"] = scenes(plain, "audiocaps", options.audiocaps, 1, seed)
    if options.clotho:
        sets["scenes-clotho"] = scenes(plain, "clotho", options.clotho, 5, seed)
    for name, evened in (("small", True), ("small-uneven", False)):
        if options.small and (evened or options.uneven):
            wide = load_composer(options.composer, music=True)
            sets[name] = small(wide, recording(wide), options.small, options.singles, BLENDS["train"] if evened else 0, evened)
    arrays: dict[str, np.ndarray] = {}
    captions: dict[str, list[list[str]]] = {}
    for name, clips in sets.items():
        events, samples, counts, said = [], [], [], []
        for clip in clips:
            own = [table.event(at, piece) for at, piece in clip.pieces]
            if clip.noise:
                own.append(table.event(0, Piece(NOISE, 0, NOISE_SECONDS * SAMPLE_RATE, clip.samples, clip.noise)))
            events += own
            counts.append(len(own))
            samples.append(clip.samples)
            said.append(clip.captions)
        arrays |= {f"{name}/events": np.array(events, np.int32), f"{name}/counts": np.array(counts, np.int8)}
        arrays[f"{name}/samples"] = np.array(samples, np.int32)
        captions[name] = said
        print(f"{name}: {len(counts)} clips, {sum(map(len, said))} captions", file=sys.stderr)
    arrays["levels"] = np.concatenate(table.levels)
    values = np.concatenate(table.values)
    arrays["values"] = np.diff(values.astype(np.int16), axis=0, prepend=np.zeros((1, N_MELS), np.int16)).astype(np.uint8)
    whole = io.BytesIO()
    np.savez(whole, allow_pickle=False, **arrays)
    content = [lzma.compress(part, preset=6) for part in (whole.getvalue(), json.dumps(captions).encode())]
    options.out.write_bytes(len(content[0]).to_bytes(8, "big") + b"".join(content))
    print(f"{table.frames * HOP / SAMPLE_RATE / 3600:.1f} hours, {options.out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


def read_pack(path: Path) -> tuple[dict[str, np.ndarray], dict[str, list[list[str]]]]:
    """The arrays and captions of `pack`."""
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "big")
    arrays = dict(np.load(io.BytesIO(lzma.decompress(content[8:size])), allow_pickle=False))
    arrays["values"] = np.cumsum(arrays["values"], 0, dtype=np.uint8)
    return arrays, json.loads(lzma.decompress(content[size:]))


@torch.inference_mode()
def compose(power: Tensor, level: Tensor, events: Tensor, clip: Tensor, frames: Tensor) -> Tensor:
    """The log-mels of some clips, brought to the level that all sounds are heard at: (C, T, M) dB.

    Args:
        power: (rows, M) of the sources.
        level: (rows,) mean squares of their samples from one frame to the next.
        events: (E, 6), as `Table.event`.
        clip: (E,) that each belongs to.
        frames: (C,) of each clip; what lies behind is silence.
    """
    row, length, place, span, gain, speed = events.unsqueeze(2).unbind(1)
    longest = int(frames.max())
    time = torch.arange(longest, device=power.device) - place  # (E, T)
    heard = (time >= 0) & (time < span)
    rows = row + (time.clamp_min(0) * HOP * speed // 1000) % length // HOP
    gains = 10 ** (gain / 10_000.0) * heard
    own = torch.arange(longest, device=power.device) < frames[:, None]
    mixed = power.new_zeros(len(frames), longest, N_MELS).index_add_(0, clip, power[rows] * gains.unsqueeze(2))
    squares = power.new_zeros(len(frames), longest).index_add_(0, clip, level[rows] * gains) * own
    mixed *= own.unsqueeze(2)
    tenths = longest // TENTH
    whole = own[:, : tenths * TENTH].reshape(-1, tenths, TENTH).all(2)
    means = squares[:, : tenths * TENTH].reshape(-1, tenths, TENTH).mean(2) * whole
    loudest = torch.where(whole.any(1), means.amax(1), squares.sum(1) / frames) if tenths else squares.sum(1) / frames
    now = 10 * loudest.clamp_min(1e-30).log10()
    mixed *= torch.where(now >= SILENT, 10 ** ((LEVEL - now) / 10), 1.0)[:, None, None]
    return 10 * mixed.clamp_min(FLOOR).log10()


def composed(arrays: dict[str, np.ndarray], name: str, device: torch.device) -> Iterator[np.ndarray]:
    """The log-mel of each clip of a packed data set, (T, M) int16 in steps of `data.logmels`."""
    power = 10 ** ((torch.from_numpy(arrays["values"]).to(device).float() * STEP + SILENCE) / 10)
    power[power <= 10 ** (SILENCE / 10) * 1.001] = 0
    level = 10 ** ((torch.from_numpy(arrays["levels"]).to(device).float() * LEVEL_STEP + SILENCE) / 10)
    events, counts = torch.from_numpy(arrays[f"{name}/events"]).to(device).long(), arrays[f"{name}/counts"].astype(np.int64)
    frames = arrays[f"{name}/samples"] // HOP + 1
    ends = np.cumsum(counts)
    for start in range(0, len(counts), CHUNK):
        part = slice(start, start + CHUNK)
        own = counts[part]
        clip = torch.from_numpy(np.repeat(np.arange(len(own)), own)).to(device)
        rows = slice(int(ends[part][0] - own[0]), int(ends[part][-1]))
        logmels = compose(power, level, events[rows], clip, torch.from_numpy(frames[part].astype(np.int64)).to(device))
        steps = (logmels * STEPS_PER_DB).round().clamp(-32768, 32767).to(torch.int16).cpu().numpy()
        yield from (one[:length] for one, length in zip(steps, frames[part].tolist(), strict=True))


def unpack(options: argparse.Namespace) -> None:
    """Write the packed data sets as prepared ones, with the validation clips of `--val`."""
    arrays, captions = read_pack(options.pack)
    device = torch.device(options.device)
    for name, said in captions.items():
        root = options.data / name
        records = [
            Record(
                f"train/{i:06d}", "train", tuple(each), f"train/{i:06d}.wav", source="composed", frames=int(samples), md5=f"{i:x}"
            )
            for i, (each, samples) in enumerate(zip(said, arrays[f"{name}/samples"], strict=True))
        ]
        val = options.val / name.removesuffix("-uneven") if options.val else None
        if val is not None and val.is_dir():
            records += list(_validation(val, root))
        root.mkdir(parents=True, exist_ok=True)
        write_manifest(root, records, {"kind": "composed"})
        write_logmels(load_dataset(options.data, name), "train", HOP, composed(arrays, name, device))
        print(f"{root}: {len(records)} clips", file=sys.stderr)


def _validation(folder: Path, root: Path) -> Iterator[Record]:
    """The clips of a folder with `captions.json`, decoded and written as prepared ones."""
    for name, said in json.loads((folder / "captions.json").read_text()).items():
        wave = load_audio(folder / name)
        path = root / "val" / f"{Path(name).stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
        yield Record(f"val/{path.stem}", "val", tuple(said), f"val/{path.name}", source=name, frames=len(wave), md5=name)


def pack_validation(options: argparse.Namespace) -> None:
    """Some validation clips of a prepared data set, compressed, with their captions."""
    records, _ = read_manifest(options.data / options.name)
    clips = [record for record in records if record.split == "val" and record.skipped is None]
    chosen = random.Random(0).sample(clips, min(options.count, len(clips)))
    folder = options.out / options.name
    folder.mkdir(parents=True, exist_ok=True)
    said = {}
    for i, record in enumerate(sorted(chosen, key=lambda record: record.clip_id)):
        wave, rate = soundfile.read(options.data / options.name / record.path, dtype="float32")
        soundfile.write(folder / f"{i:05d}.ogg", wave, rate, format="OGG", subtype="VORBIS")
        said[f"{i:05d}.ogg"] = list(record.captions)
    (folder / "captions.json").write_text(json.dumps(said))


def main() -> None:
    """Parse the arguments and do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make: Callable[..., Any] = commands.add_parser
    packing = make("pack", help="what another machine needs to compose data sets")
    packing.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    for name in ("audiocaps", "clotho", "small"):
        packing.add_argument(f"--{name}", type=int, default=0, help="training scenes; 0 for no such data set")
    packing.add_argument("--seed", type=int, default=0, help="of the scenes of `--audiocaps` and `--clotho`")
    packing.add_argument("--singles", type=int, default=12, help="single sounds of each kind in `small`")
    packing.add_argument("--uneven", action="store_true", help="`small-uneven` too, of the recordings as often as they come")
    packing.add_argument("--out", type=Path, required=True)
    packing.set_defaults(run=pack)
    validation = make("val", help="some validation clips of a prepared data set, compressed")
    validation.add_argument("name")
    validation.add_argument("--data", type=Path, default=Path("data"))
    validation.add_argument("--count", type=int, default=100)
    validation.add_argument("--out", type=Path, required=True)
    validation.set_defaults(run=pack_validation)
    unpacking = make("unpack", help="prepared data sets out of a pack")
    unpacking.add_argument("pack", type=Path)
    unpacking.add_argument("--data", type=Path, default=Path("data"))
    unpacking.add_argument("--val", type=Path, help="where `val` wrote its clips")
    unpacking.add_argument("--device", default="cpu")
    unpacking.set_defaults(run=unpack)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
