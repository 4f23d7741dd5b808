"""Make the example sounds, from numbers alone: two dozen short clips, and two scenes in which things happen at known places.

    python examples/make_clips.py [DIR]

Writes OGG Vorbis files, 32 kHz mono, into DIR (by default the folder `clips` beside this file) and prints each. The sounds
follow from the seeds below; a file that holds them already is left alone.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.random import default_rng
from numpy.typing import NDArray

from diffatr_cli.data.sounds import render
from diffatr_cli.types import SAMPLE_RATE

Samples = NDArray[np.float32]

HERE = Path(__file__).parent / "clips"
COMPRESSION = 0.7  # of libsndfile: 0 is the best quality, 1 the smallest file
BLOCK = 10_000  # samples; libsndfile crashes on long OGG files written at once


@dataclass(frozen=True)
class Part:
    """A sound within a scene: from `start` for `seconds`, so many dB below the loudest part."""

    kind: str
    start: float
    seconds: float
    below: float = 0.0


@dataclass(frozen=True)
class Sound:
    """How one file is made; `parts` of one kind from 0 to the end are a plain clip."""

    seed: int
    seconds: float
    parts: tuple[Part, ...]


def alone(kind: str, seconds: float, seed: int) -> Sound:
    """A clip of one kind of sound."""
    return Sound(seed, seconds, (Part(kind, 0.0, seconds),))


SOUNDS: dict[str, Sound] = {
    "alarm_clock_beeping": alone("alarm_beeping", 3.5, 1),
    "applause_after_a_concert": alone("applause", 5.0, 2),
    "baby_crying": alone("baby_crying", 4.5, 3),
    "birds_in_the_morning": alone("birds_chirping", 5.0, 4),
    "campfire_crackling": alone("fire_crackling", 5.0, 5),
    "car_horn": alone("car_horn", 3.5, 6),
    "cat_meowing": alone("cat_meowing", 4.0, 7),
    "church_bell": alone("church_bell", 6.0, 8),
    "cow_mooing": alone("cow_mooing", 4.5, 9),
    "crickets_at_night": alone("crickets", 5.0, 10),
    "dog_barking": alone("dog_barking", 4.0, 11),
    "door_knocking": alone("knocking", 4.0, 12),
    "footsteps_on_a_hard_floor": alone("footsteps", 4.5, 13),
    "frog_by_a_pond": alone("frog_croaking", 4.0, 14),
    "glass_breaking": alone("glass_breaking", 3.0, 15),
    "helicopter_overhead": alone("helicopter", 5.0, 16),
    "laughing": alone("person_laughing", 4.0, 17),
    "piano_melody": alone("piano", 6.0, 18),
    "police_siren": alone("siren", 5.0, 19),
    "rain_on_a_roof": alone("rain", 5.0, 20),
    "sea_waves": alone("ocean_waves", 6.0, 21),
    "telephone_ringing": alone("telephone_ringing", 4.5, 22),
    "thunder": alone("thunder", 6.0, 23),
    "typing_on_a_keyboard": alone("typing", 4.0, 24),
    # A dog barks from 0:21 to 0:28, and a church bell has rung before.
    "walk_through_a_village": Sound(
        25,
        38.0,
        (
            Part("birds_chirping", 0.0, 38.0, 16.0),
            Part("wind", 0.0, 38.0, 20.0),
            Part("church_bell", 4.0, 8.0, 3.0),
            Part("dog_barking", 21.0, 7.0),
        ),
    ),
    # An owl hoots from 0:06 to 0:11; a thunderstorm comes up at 0:22.
    "evening_at_the_lake": Sound(
        26,
        34.0,
        (
            Part("crickets", 0.0, 34.0, 18.0),
            Part("owl_hooting", 6.0, 5.0),
            Part("thunder", 22.0, 11.0),
        ),
    ),
}


def make(sound: Sound) -> Samples:
    """The samples of a sound at 32 kHz, (seconds x 32000,), with a peak of 0.8."""
    mix = np.zeros(round(sound.seconds * SAMPLE_RATE), np.float32)
    for number, part in enumerate(sound.parts):
        samples = render(part.kind, default_rng([sound.seed, number]), part.seconds)
        ramp = np.linspace(0, 1, SAMPLE_RATE // 50, dtype=np.float32)  # sounds that are cut off click
        samples[: len(ramp)] *= ramp
        samples[-len(ramp) :] *= ramp[::-1]
        start = round(part.start * SAMPLE_RATE)
        mix[start : start + len(samples)] += samples * np.float32(10 ** (-part.below / 20))
    return np.asarray(mix * np.float32(0.8 / np.abs(mix).max()))


def encode(samples: Samples) -> bytes:
    """The samples as an OGG Vorbis file."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", SAMPLE_RATE, 1, format="OGG", subtype="VORBIS", compression_level=COMPRESSION) as file:
        for start in range(0, len(samples), BLOCK):
            file.write(samples[start : start + BLOCK])
    return out.getvalue()


def holds(path: Path, content: bytes) -> bool:
    """Whether a file decodes to the same samples as `content`; the bytes of two OGG files of one sound differ."""
    try:
        return np.array_equal(soundfile.read(path)[0], soundfile.read(io.BytesIO(content))[0])
    except soundfile.LibsndfileError:  # not there, or damaged
        return False


def write_clips(folder: Path) -> None:
    """Write all sounds into a folder, and print each with its length and size."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sound in SOUNDS.items():
        path, content = folder / f"{name}.ogg", encode(make(sound))
        kept = holds(path, content)
        if not kept:
            path.write_bytes(content)
        print(f"{path}  {sound.seconds:g} s  {path.stat().st_size / 1000:.0f} KB{'  (as it was)' if kept else ''}")


if __name__ == "__main__":
    write_clips(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
