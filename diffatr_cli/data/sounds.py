"""Procedural sounds: plainly named kinds, each drawn with random parameters from a generator, by numpy alone.

They are simple physical or vocal sketches (pulses through resonances, decaying partials, shaped noise), good enough to be
told apart by ear and by name. No recording is involved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from ..types import SAMPLE_RATE as RATE

Wave = NDArray[np.float64]
Peaks = Sequence[tuple[float, float, float]]
"""Resonances: (centre Hz, bandwidth Hz, gain)."""

# --- building blocks ------------------------------------------------------------------------------------------------------


def _samples(seconds: float) -> int:
    return max(1, round(seconds * RATE))


def _time(seconds: float) -> Wave:
    return np.arange(_samples(seconds)) / RATE


def _shaped(wave: Wave, gain: Callable[[Wave], Wave]) -> Wave:
    """The wave with every frequency f (Hz) multiplied by gain(f)."""
    size = _fast_length(len(wave))
    frequencies: Wave = np.linspace(0, RATE * (size // 2) / size, size // 2 + 1)
    response = gain(frequencies)
    shaped: Wave = np.fft.irfft(np.fft.rfft(wave, size) * response, size)[: len(wave)]
    return shaped


def _fast_length(samples: int) -> int:
    """A little more than `samples`, and quick to transform."""
    power = 1 << max(0, samples.bit_length() - 4)
    return next(factor * power for factor in (8, 9, 10, 12, 15, 16) if factor * power >= samples)


def _unit(wave: Wave) -> Wave:
    """The wave at a standard deviation of 1."""
    return wave * (1 / (float(wave.std()) + 1e-12))


def _peaks(peaks: Peaks) -> Callable[[Wave], Wave]:
    return lambda f: sum((g / (1 + ((f - c) / (0.5 * b)) ** 2) for c, b, g in peaks), np.zeros(len(f)))


def _lowpass(corner: float, order: int = 2) -> Callable[[Wave], Wave]:
    return lambda f: 1 / (1 + (f / corner) ** (2 * order)) ** 0.5


def _band(low: float, high: float, order: int = 2) -> Callable[[Wave], Wave]:
    return lambda f: (1 + (low / np.maximum(f, 1)) ** (2 * order)) ** -0.5 * (1 + (f / high) ** (2 * order)) ** -0.5


def _noise(rng: Generator, seconds: float, gain: Callable[[Wave], Wave] | None = None) -> Wave:
    """Gaussian noise of unit standard deviation, shaped."""
    wave = rng.standard_normal(_samples(seconds))
    if gain is not None:
        wave = _shaped(wave, gain)
    return _unit(wave)


def _curve(rng: Generator, seconds: float, low: float, high: float, interval: float) -> Wave:
    """A smooth random curve between low and high with a bend every `interval` seconds."""
    knots = rng.uniform(low, high, int(seconds / interval) + 3)
    at = np.arange(_samples(seconds)) / RATE / interval
    left = at.astype(int)
    blend = 0.5 - 0.5 * np.cos(np.pi * (at - left))
    curve: Wave = knots[left] * (1 - blend) + knots[left + 1] * blend
    return curve


def _harmonics(frequency: Wave, amplitudes: Sequence[float], offset: float = 0.0) -> Wave:
    """A tone of changing frequency (Hz per sample) with the given harmonics; those above 15 kHz are left out."""
    phase = 2 * np.pi * np.cumsum(frequency) / RATE + offset
    # sin(kx) from its two predecessors: much cheaper than a sine each.
    twice_cos, before, sine = 2 * np.cos(phase), np.zeros_like(phase), np.sin(phase)
    out = np.zeros_like(phase)
    for amplitude in amplitudes[: max(1, int(15_000 / frequency.max()))]:
        out += amplitude * sine
        before, sine = sine, twice_cos * sine - before
    return out


def _rolloff(count: int, slope: float) -> list[float]:
    return [number**-slope for number in range(1, count + 1)]


def _bump(seconds: float, attack: float, release: float) -> Wave:
    """An envelope that rises over `attack` s, stays at 1 and falls over the last `release` s."""
    t = _time(seconds)
    rise, fall = np.clip(t / attack, 0, 1), np.clip((seconds - t) / release, 0, 1)
    bump: Wave = np.sin(0.5 * np.pi * rise) ** 2 * np.sin(0.5 * np.pi * fall) ** 2
    return bump


def _ring(rng: Generator, seconds: float, partials: Peaks, click: float = 0.0) -> Wave:
    """A struck body: decaying sines (Hz, decay time in s, amplitude), with a click of noise at the start."""
    t = _time(seconds)
    f, d, a = np.array(partials).T
    exponent = 2j * np.pi * f - 1 / d
    start = a * np.exp(1j * rng.uniform(0, 2 * np.pi, len(a)))
    # exp(z (block + rest)) = exp(z block) exp(z rest): few exponentials, and a small product of which the imaginary part is
    # the sound. By einsum, which unlike BLAS gives the same bits on any number of threads.
    size = int(len(t) ** 0.5) + 1
    blocks = np.exp(np.outer(np.arange(size) * size / RATE, exponent))
    rests = start[:, None] * np.exp(np.outer(exponent, np.arange(size) / RATE))
    parts = np.concatenate([blocks.real, blocks.imag], axis=1), np.concatenate([rests.imag, rests.real])
    out: Wave = np.einsum("bp,pr->br", *parts).ravel()[: len(t)]
    out *= np.minimum(1, t / 0.001)
    if click:
        out += click * rng.standard_normal(len(t)) * np.exp(-t / 0.003)
    return out


def _place(out: Wave, event: Wave, at: float, gain: float = 1.0) -> None:
    start = int(at * RATE)
    piece = event[: max(0, len(out) - start)]
    out[start : start + len(piece)] += gain * piece


def _repeat(rng: Generator, seconds: float, make: Callable[[], Wave], low: float, high: float) -> Wave:
    """Events from soon after the start to the end, with low to high seconds between one's start and the next's."""
    out = np.zeros(_samples(seconds))
    at = rng.uniform(0, min(0.2, 0.1 * seconds))
    while at < seconds - 0.05:
        _place(out, make(), at, rng.uniform(0.75, 1.0))
        at += rng.uniform(low, high)
    return out


def _scatter(rng: Generator, seconds: float, rate: float, kernels: Sequence[Wave], spread: float = 1.0) -> Wave:
    """Very many events: some kernel at random moments, `rate` a second, with log-normal strengths."""
    out = np.zeros(_samples(seconds))
    for _ in range(max(1, rng.poisson(rate * seconds))):
        _place(out, kernels[int(rng.integers(len(kernels)))], rng.uniform(0, seconds), rng.lognormal(0, spread))
    return out


def _hall(rng: Generator, wave: Wave, decay: float, amount: float) -> Wave:
    """The wave in a room: convolved with decaying noise."""
    tail = rng.standard_normal(_samples(3 * decay)) * np.exp(-_time(3 * decay) / decay)
    size = _fast_length(len(wave) + len(tail))
    wet = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]
    return wave + amount * float(wave.std()) * _unit(wet)


def _voice(rng: Generator, pitch: Wave, peaks: Peaks, breath: float = 0.05, slope: float = 0.8) -> Wave:
    """A vocal sound: a rich tone of the given pitch (Hz per sample) through formants, with some breath."""
    wobble = 1 + 0.01 * _curve(rng, len(pitch) / RATE, -1, 1, 0.02)
    source = _harmonics(pitch * wobble, _rolloff(30, slope))
    source += breath * 3 * rng.standard_normal(len(pitch))
    return _shaped(source, lambda f: _peaks(peaks)(f) + 0.01)


# --- animals --------------------------------------------------------------------------------------------------------------


def _dog(rng: Generator, seconds: float) -> Wave:
    size = rng.uniform(0.75, 1.5)  # of the dog: large ones bark low

    def bark() -> Wave:
        length = rng.uniform(0.12, 0.22) * size**0.5
        u = np.linspace(0, 1, _samples(length))
        pitch = 420 / size * rng.uniform(0.92, 1.08) * (0.75 + 0.5 * np.sin(np.pi * u**0.6))
        peaks = [(750 / size, 350, 1.0), (1400 / size, 450, 0.7), (2900 / size, 700, 0.3)]
        return _voice(rng, pitch, peaks, breath=0.25, slope=0.6) * _bump(length, 0.012, 0.6 * length)

    def burst() -> Wave:
        out = np.zeros(_samples(1.2))
        for number in range(rng.integers(1, 4)):
            _place(out, bark(), number * rng.uniform(0.26, 0.36))
        return out

    return _hall(rng, _repeat(rng, seconds, burst, 0.7, 1.5), 0.08, 0.15)


def _cat(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(450, 700)

    def meow() -> Wave:
        length = rng.uniform(0.6, 1.0)
        u = np.linspace(0, 1, _samples(length))
        pitch = base * rng.uniform(0.95, 1.05) * (0.85 + 0.45 * np.sin(np.pi * u**0.7))
        closed = _voice(rng, pitch, [(600, 300, 1.0), (2300, 500, 0.6)])
        opened = _voice(rng, pitch, [(1100, 400, 1.0), (1900, 500, 0.8), (3600, 900, 0.4)])
        blend = np.sin(np.pi * u) ** 1.5
        return (closed * (1 - blend) + opened * blend) * _bump(length, 0.08, 0.25)

    return _repeat(rng, seconds, meow, 1.1, 1.9)


def _birds(rng: Generator, seconds: float) -> Wave:
    centre = rng.uniform(2800, 5000)
    width = rng.uniform(600, 1600)
    syllable = rng.uniform(0.05, 0.14)
    trills = int(rng.integers(2, 8))

    def song() -> Wave:
        out = np.zeros(_samples(trills * syllable * 1.5 + 0.2))
        up = rng.choice([-1, 1])
        for number in range(trills):
            u = np.linspace(-1, 1, _samples(syllable))
            sweep = centre + width * (0.5 * up * u + 0.3 * np.sin(3 * np.pi * u + number))
            _place(out, _harmonics(sweep, [1, 0.15]) * np.cos(0.5 * np.pi * u) ** 2, number * syllable * 1.4)
        return out

    return _repeat(rng, seconds, song, 0.5, 1.3)


def _rooster(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(550, 750)

    def crow() -> Wave:
        out = np.zeros(_samples(2.2))
        at = 0.0
        for length, height in ((0.18, 0.9), (0.14, 1.15), (0.28, 1.3), (rng.uniform(0.7, 1.1), 1.2)):
            u = np.linspace(0, 1, _samples(length))
            pitch = base * height * (1 + 0.12 * np.sin(np.pi * u) - 0.25 * u**3)
            call = _voice(rng, pitch, [(1300, 500, 1.0), (2600, 800, 0.8), (4200, 900, 0.3)], 0.1, 0.4)
            _place(out, call * _bump(length, 0.02, 0.3 * length), at)
            at += length + 0.05
        return out

    return _repeat(rng, seconds, crow, 2.3, 3.0)


def _cow(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(110, 170)

    def moo() -> Wave:
        length = rng.uniform(1.1, 1.8)
        u = np.linspace(0, 1, _samples(length))
        pitch = base * (0.85 + 0.3 * np.sin(np.pi * np.minimum(1, 1.2 * u)))
        hum = _voice(rng, pitch, [(250, 150, 1.0), (900, 300, 0.1)], 0.02)
        call = _voice(rng, pitch, [(450, 250, 1.0), (850, 300, 0.7), (2300, 600, 0.15)], 0.05, 0.6)
        blend = np.clip((u - 0.1) / 0.3, 0, 1)
        return (hum * (1 - blend) + call * blend) * _bump(length, 0.15, 0.3)

    return _repeat(rng, seconds, moo, 1.8, 2.6)


def _crickets(rng: Generator, seconds: float) -> Wave:
    out = np.zeros(_samples(seconds))
    for _ in range(rng.integers(1, 4)):
        carrier, pulses, every = rng.uniform(3900, 5200), int(rng.integers(3, 6)), rng.uniform(0.25, 0.5)
        t = _time(seconds)
        inside = (t + rng.uniform(0, every)) % every
        gate = (inside < pulses * 0.022) * np.sin(np.pi * (inside % 0.022) / 0.022) ** 2
        out += rng.uniform(0.4, 1) * gate * np.sin(2 * np.pi * carrier * t)
    return out


def _frog(rng: Generator, seconds: float) -> Wave:
    body, pulses = rng.uniform(500, 900), rng.uniform(35, 60)

    def croak() -> Wave:
        length = rng.uniform(0.3, 0.55)
        t = _time(length)
        rate = pulses * (1 + 0.4 * t / length)
        train = np.maximum(0, np.sin(2 * np.pi * np.cumsum(rate) / RATE)) ** 12
        wave = _shaped(train * (1 + 0.3 * rng.standard_normal(len(t))), _peaks([(body, 160, 1), (2.4 * body, 300, 0.7)]))
        return wave * _bump(length, 0.05, 0.1)

    return _repeat(rng, seconds, croak, 0.6, 1.1)


def _owl(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(330, 430)

    def hoot(length: float) -> Wave:
        u = np.linspace(0, 1, _samples(length))
        return _harmonics(base * (1 + 0.06 * np.sin(np.pi * u)), [1, 0.12, 0.05]) * _bump(length, 0.08, 0.15)

    def call() -> Wave:
        out = np.zeros(_samples(1.8))
        for at, length in ((0.0, 0.25), (0.45, 0.2), (0.75, rng.uniform(0.5, 0.8))):
            _place(out, hoot(length), at)
        return out

    return _hall(rng, _repeat(rng, seconds, call, 2.0, 2.8), 0.3, 0.25)


def _fly(rng: Generator, seconds: float) -> Wave:
    pitch = rng.uniform(150, 240) * (1 + _curve(rng, seconds, -0.12, 0.12, 0.15))
    wave = _harmonics(pitch, _rolloff(40, 0.9))
    near = _curve(rng, seconds, 0.1, 1, 0.35) ** 1.5
    return _shaped(wave * near, _band(200, 6000))


# --- people ---------------------------------------------------------------------------------------------------------------


def _baby(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(380, 520)

    def wail() -> Wave:
        length = rng.uniform(0.7, 1.2)
        u = np.linspace(0, 1, _samples(length))
        pitch = base * (0.85 + 0.3 * np.sin(np.pi * u**0.5) + 0.02 * np.sin(2 * np.pi * 7 * length * u))
        peaks = [(1100, 300, 1.0), (1700, 400, 0.5), (3600, 700, 0.5), (5200, 900, 0.2)]
        return _voice(rng, pitch, peaks, 0.08, 0.5) * _bump(length, 0.06, 0.2)

    return _repeat(rng, seconds, wail, 1.1, 1.6)


def _laughter(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(140, 300)
    tract = (base / 180) ** 0.3

    def laugh() -> Wave:
        count = int(rng.integers(4, 9))
        pace = rng.uniform(0.17, 0.23)
        out = np.zeros(_samples(count * pace + 0.2))
        for number in range(count):
            length = pace * 0.62
            pitch = base * (1.35 - 0.06 * number) * np.linspace(1.08, 0.92, _samples(length))
            peaks = [(750 * tract, 180, 1.0), (1250 * tract, 220, 0.7), (2700 * tract, 400, 0.25)]
            ha = _voice(rng, pitch, peaks, 0.12) * _bump(length, 0.02, 0.06)
            _place(out, ha, number * pace, 0.92**number)
        return out

    return _repeat(rng, seconds, laugh, 1.5, 2.4)


def _whistling(rng: Generator, seconds: float) -> Wave:
    tonic = rng.uniform(900, 1400)
    out = np.zeros(_samples(seconds))
    at = rng.uniform(0, 0.2)
    while at < seconds - 0.1:
        length = rng.choice([0.2, 0.3, 0.45, 0.7])
        t = _time(length)
        note = tonic * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)
        pitch = note * (1 - 0.06 * np.exp(-t / 0.04) + 0.008 * np.sin(2 * np.pi * 5.5 * t))
        breath = 0.04 * _noise(rng, length, _band(0.8 * note, 1.3 * note))
        _place(out, (_harmonics(pitch, [1, 0.03]) + breath) * _bump(length, 0.03, 0.05), at)
        at += length + rng.choice([0.02, 0.02, 0.25])
    return out


def _snoring(rng: Generator, seconds: float) -> Wave:
    rattle = rng.uniform(25, 45)

    def breath() -> Wave:
        length = rng.uniform(0.9, 1.4)
        t = _time(length)
        pulses = np.maximum(0, np.sin(2 * np.pi * np.cumsum(rattle * (1 + _curve(rng, length, -0.1, 0.1, 0.1))) / RATE)) ** 4
        wave = _shaped(pulses * rng.standard_normal(len(t)), _peaks([(220, 150, 1), (700, 300, 0.5), (1600, 600, 0.2)]))
        return wave * _bump(length, 0.3, 0.3)

    return _repeat(rng, seconds, breath, 2.0, 2.8)


def _applause(rng: Generator, seconds: float) -> Wave:
    kernels = []
    for _ in range(12):
        centre = rng.uniform(900, 2400)
        kernels.append(_noise(rng, 0.03, _peaks([(centre, 0.6 * centre, 1), (4000, 4000, 0.15)])) * np.exp(-_time(0.03) / 0.006))
    return _scatter(rng, seconds, rng.uniform(80, 300), kernels, 0.5) * _curve(rng, seconds, 0.7, 1, 1.0)


def _footsteps(rng: Generator, seconds: float) -> Wave:
    pace, heel = rng.uniform(0.42, 0.65), rng.uniform(80, 160)
    floor = rng.uniform(900, 3000)
    side = 0

    def step() -> Wave:
        nonlocal side
        side ^= 1
        thump = _ring(rng, 0.25, [(heel * (1 + 0.1 * side), 0.03, 1.0), (2.7 * heel, 0.015, 0.5)])
        scrape = _noise(rng, 0.25, _band(0.5 * floor, 2 * floor)) * (np.exp(-_time(0.25) / 0.01) + 0.25 * _bump(0.25, 0.08, 0.1))
        return thump + 0.25 * scrape

    return _hall(rng, _repeat(rng, seconds, step, 0.96 * pace, 1.04 * pace), 0.1, 0.15)


# --- things ---------------------------------------------------------------------------------------------------------------


def _siren(rng: Generator, seconds: float) -> Wave:
    t = _time(seconds)
    style = rng.integers(3)
    low, high = rng.uniform(450, 650), rng.uniform(1100, 1600)
    if style == 0:  # wail
        u = (t / rng.uniform(2.2, 4.0) + rng.uniform()) % 1
        pitch = low + (high - low) * np.sin(np.pi * u) ** 1.2
    elif style == 1:  # yelp
        u = (t * rng.uniform(2.5, 4)) % 1
        pitch = low + (high - low) * u**0.7
    else:  # two tones
        pitch = np.where((t / rng.uniform(0.5, 0.7)) % 2 < 1, 0.9 * low, 1.2 * low)
    wave = _shaped(_harmonics(pitch, [1, 0.5, 0.5, 0.25, 0.2, 0.1]), _band(400, 5000))
    return _hall(rng, wave, 0.25, 0.2) * _curve(rng, seconds, 0.6, 1, 2.0)


def _car_horn(rng: Generator, seconds: float) -> Wave:
    low = rng.uniform(350, 440)

    def honk() -> Wave:
        length = rng.choice([0.2, 0.3, 0.8])
        flat = np.ones(_samples(length))
        chord = _harmonics(low * flat, _rolloff(25, 0.5)) + _harmonics(1.26 * low * flat, _rolloff(20, 0.5))
        return _shaped(chord, _peaks([(1000, 900, 1), (2600, 1500, 0.8)])) * _bump(length, 0.015, 0.03)

    return _hall(rng, _repeat(rng, seconds, honk, 0.5, 1.4), 0.15, 0.15)


def _engine(rng: Generator, seconds: float) -> Wave:
    firing = rng.uniform(18, 32) * (1 + _curve(rng, seconds, -0.03, 0.03, 0.3))
    phase = np.cumsum(firing) / RATE
    pulses = np.exp(-((phase % 1) / 0.12)) * (1 + 0.25 * np.cos(np.pi * np.floor(phase)))  # every other cylinder louder
    wave = _shaped(pulses - pulses.mean(), _peaks([(60, 60, 1.2), (130, 100, 1), (320, 250, 0.4), (1100, 900, 0.08)]))
    rattle = _noise(rng, seconds, _band(600, 4000)) * pulses
    return _unit(wave) + 0.15 * _unit(rattle)


def _helicopter(rng: Generator, seconds: float) -> Wave:
    phase = np.cumsum(rng.uniform(9, 14) * (1 + _curve(rng, seconds, -0.01, 0.01, 0.5))) / RATE
    blade = np.exp(-(((phase % 1) - 0.5) ** 2) / 0.012)
    thump = _noise(rng, seconds, _band(40, 250)) * blade
    swish = _noise(rng, seconds, _band(300, 3500)) * (0.15 + blade)
    turbine = _harmonics(np.full(_samples(seconds), rng.uniform(1800, 2600)), [1, 0.3])
    return (thump + 0.35 * swish + 0.03 * turbine) * _curve(rng, seconds, 0.5, 1, 2.0)


def _train_horn(rng: Generator, seconds: float) -> Wave:
    base = rng.uniform(240, 320)

    def blow() -> Wave:
        length = rng.uniform(0.7, 1.6)
        flat = np.ones(_samples(length))
        chord = sum((_harmonics(base * ratio * flat, _rolloff(18, 0.9), ratio) for ratio in (1, 1.19, 1.5, 1.78)), 0 * flat)
        return (chord + 0.3 * _noise(rng, length, _band(1000, 5000))) * _bump(length, 0.08, 0.15)

    return _hall(rng, _repeat(rng, seconds, blow, 1.4, 2.2), 0.4, 0.3)


def _vacuum(rng: Generator, seconds: float) -> Wave:
    motor = rng.uniform(180, 300) * (1 + _curve(rng, seconds, -0.02, 0.02, 0.7))
    whine = _harmonics(motor, [0.3, 1, 0.2, 0.6, 0.1, 0.4, 0.1, 0.3])
    return whine + 1.6 * _noise(rng, seconds, _peaks([(500, 600, 1), (2500, 3500, 0.8)]))


def _drill(rng: Generator, seconds: float) -> Wave:
    top = rng.uniform(500, 900)

    def burst() -> Wave:
        length = rng.uniform(1.0, 2.0)
        t = _time(length)
        load = 1 - 0.25 * np.clip((t - 0.4) / 0.3, 0, 1) * (1 + 0.1 * _curve(rng, length, -1, 1, 0.05))
        pitch = top * (1 - np.exp(-t / 0.12)) * load + 30
        wave = _harmonics(pitch, _rolloff(16, 0.4)) + 1.2 * _noise(rng, length, _band(1500, 9000)) * (load < 0.9)
        return wave * _bump(length, 0.05, 0.25)

    return _repeat(rng, seconds, burst, 1.8, 2.8)


def _telephone(rng: Generator, seconds: float) -> Wave:
    bells = rng.uniform(900, 1300) * np.array([1, 1.27])
    hammer = rng.uniform(18, 25)

    def ringing() -> Wave:
        length = rng.uniform(0.8, 1.3)
        out = np.zeros(_samples(length + 0.4))
        strikes = [_ring(rng, 0.4, [(f, 0.12, 1), (2.76 * f, 0.07, 0.6), (5.4 * f, 0.03, 0.3)], 0.1) for f in bells]
        for number in range(int(length * hammer)):
            _place(out, strikes[number % 2], number / hammer)
        return out

    return _repeat(rng, seconds, ringing, 1.7, 2.3)


def _alarm(rng: Generator, seconds: float) -> Wave:
    tone, rate, duty = rng.uniform(1900, 3200), rng.uniform(1.5, 5), rng.uniform(0.4, 0.6)
    t = _time(seconds)
    gate = np.clip(np.minimum((t * rate) % 1, duty - (t * rate) % 1) * 400 / rate, 0, 1)
    return gate * _harmonics(np.full(len(t), tone), [1, 0, 0.33, 0, 0.2])


def _church_bell(rng: Generator, seconds: float) -> Wave:
    nominal = rng.uniform(250, 500)

    def strike() -> Wave:
        # Hum, prime, tierce, quint, nominal and above, as bell founders call them.
        bell = [(0.5, 3.0, 0.6), (1, 2.0, 1), (1.19, 1.6, 0.7), (1.5, 1.2, 0.4), (2, 1.0, 0.8), (2.6, 0.6, 0.4), (4.1, 0.3, 0.3)]
        return _ring(rng, 5.0, [(nominal * ratio * rng.uniform(0.998, 1.002), decay, a) for ratio, decay, a in bell], 0.2)

    return _repeat(rng, seconds, strike, 1.3, 2.4)


def _doorbell(rng: Generator, seconds: float) -> Wave:
    high = rng.uniform(600, 800)

    def ding_dong() -> Wave:
        out = np.zeros(_samples(2.4))
        for at, pitch in ((0.0, high), (rng.uniform(0.45, 0.65), high / 1.26)):
            _place(out, _ring(rng, 1.7, [(pitch, 0.5, 1), (2 * pitch, 0.3, 0.3), (4.2 * pitch, 0.1, 0.2)], 0.05), at)
        return out

    return _repeat(rng, seconds, ding_dong, 2.2, 3.0)


def _clock(rng: Generator, seconds: float) -> Wave:
    rate, body = rng.uniform(1.6, 4.0), rng.uniform(2000, 3500)
    side = 0

    def tick() -> Wave:
        nonlocal side
        side ^= 1
        pitch = body * (1 if side else 0.8)
        return _ring(rng, 0.1, [(pitch, 0.008, 1), (2.3 * pitch, 0.004, 0.7), (0.3 * pitch, 0.01, 0.4)], 0.5)

    return _repeat(rng, seconds, tick, 0.995 / rate, 1.005 / rate)


def _knocking(rng: Generator, seconds: float) -> Wave:
    door = rng.uniform(140, 260)

    def knocks() -> Wave:
        out = np.zeros(_samples(1.6))
        pace = rng.uniform(0.16, 0.26)
        for number in range(rng.integers(2, 6)):
            partials = [(door * ratio * rng.uniform(0.98, 1.02), 0.035 / ratio**0.5, 1 / ratio) for ratio in (1, 1.9, 3.3, 5.6)]
            _place(out, _ring(rng, 0.2, partials, 0.3), number * pace, rng.uniform(0.8, 1))
        return out

    return _hall(rng, _repeat(rng, seconds, knocks, 1.5, 2.2), 0.12, 0.2)


def _hammering(rng: Generator, seconds: float) -> Wave:
    body, pace = rng.uniform(700, 1400), rng.uniform(0.4, 0.7)

    def blow() -> Wave:
        ratios = (1, 1.58, 2.24, 2.92, 4.17, 5.43)
        partials = [(body * ratio * rng.uniform(0.99, 1.01), 0.18 / ratio**0.7, 1 / ratio**0.5) for ratio in ratios]
        return _ring(rng, 0.6, partials, 2.0)

    return _repeat(rng, seconds, blow, 0.9 * pace, 1.1 * pace)


def _typing(rng: Generator, seconds: float) -> Wave:
    keys = rng.uniform(1500, 3000)

    def key() -> Wave:
        out = np.zeros(_samples(0.15))
        for at, gain in ((0.0, 1.0), (rng.uniform(0.05, 0.09), 0.4)):  # down and up again
            partials = [(keys * rng.uniform(0.8, 1.2), 0.006, 1), (350 * rng.uniform(0.8, 1.2), 0.012, 0.8)]
            _place(out, _ring(rng, 0.05, partials, 1.0), at, gain)
        return out

    return _repeat(rng, seconds, key, 0.07, 0.22)


def _glass(rng: Generator, seconds: float) -> Wave:
    def crash() -> Wave:
        out = np.zeros(_samples(1.6))
        burst = _noise(rng, 0.3, _band(2000, 12000)) * np.exp(-_time(0.3) / 0.04)
        _place(out, burst, 0)
        for _ in range(rng.integers(25, 50)):  # shards
            pitch = rng.uniform(2500, 9000)
            partials = [(pitch, 0.06, 1), (1.7 * pitch, 0.03, 0.6)]
            _place(out, _ring(rng, 0.3, partials, 0.2), abs(rng.normal(0, 0.35)), rng.lognormal(-1.5, 0.7))
        return out

    return _repeat(rng, seconds, crash, 2.0, 3.0)


def _explosion(rng: Generator, seconds: float) -> Wave:
    def blast() -> Wave:
        t = _time(2.5)
        boom = _noise(rng, 2.5, _lowpass(rng.uniform(80, 200), 1)) * np.exp(-t / rng.uniform(0.4, 0.8))
        crack = _noise(rng, 2.5, _band(300, 6000)) * np.exp(-t / 0.08)
        return (boom + 0.7 * crack) * np.minimum(1, t / 0.002)

    return _hall(rng, _repeat(rng, seconds, blast, 2.2, 3.2), 0.5, 0.3)


# --- music ----------------------------------------------------------------------------------------------------------------


def _piano(rng: Generator, seconds: float) -> Wave:
    tonic = rng.uniform(200, 330)
    out = np.zeros(_samples(seconds))
    at, beat = 0.02, rng.uniform(0.18, 0.32)
    while at < seconds - 0.05:
        for step in rng.choice([0, 2, 4, 5, 7, 9, 12, 14], size=rng.integers(1, 3), replace=False):
            pitch = tonic * 2 ** (step / 12)
            partials = [(k * pitch * (1 + 0.0004 * k**2) ** 0.5, 0.9 / k**0.7, k**-1.3) for k in range(1, 11)]  # stiff strings
            _place(out, _ring(rng, 1.5, partials, 0.05), at, rng.uniform(0.6, 1))
        at += beat * rng.choice([1, 1, 2])
    return out


def _guitar(rng: Generator, seconds: float) -> Wave:
    root = rng.uniform(100, 150)

    def strum() -> Wave:
        out = np.zeros(_samples(1.8))
        chord = root * 2 ** (rng.choice([0, 5, 7, -2]) / 12) * np.array([1, 1.5, 2, 2.52, 3, 4])  # a major chord
        for number, pitch in enumerate(chord):
            partials = [(k * pitch, 0.8 / k**0.5, np.sin(0.21 * np.pi * k) / k) for k in range(1, 14) if k * pitch < 9000]
            _place(out, _ring(rng, 1.7, partials, 0.08), number * 0.014)
        return out

    beat = rng.uniform(0.35, 0.6)
    return _repeat(rng, seconds, strum, 0.97 * beat, 1.03 * beat)


def _drums(rng: Generator, seconds: float) -> Wave:
    out = np.zeros(_samples(seconds))
    beat = rng.uniform(0.2, 0.3)
    t = _time(0.3)
    kick = _harmonics(rng.uniform(40, 60) + rng.uniform(80, 140) * np.exp(-t / 0.03), [1]) * np.exp(-t / 0.1)
    snare = _noise(rng, 0.3, _band(800, 9000)) * np.exp(-t / 0.06) + 0.6 * np.sin(2 * np.pi * 190 * t) * np.exp(-t / 0.05)
    hat = _noise(rng, 0.3, _band(7000, 14000)) * np.exp(-t / 0.025)
    for number in range(int(seconds / beat)):
        at = (number + 0.3) * beat
        _place(out, hat, at, 0.25)
        if number % 4 == 2:
            _place(out, snare, at, 0.4)
        elif number % 4 == 0 or rng.uniform() < 0.2:
            _place(out, kick, at, 1.2)
    return out


# --- weather and water ----------------------------------------------------------------------------------------------------


def _rain(rng: Generator, seconds: float) -> Wave:
    hiss = _noise(rng, seconds, _band(rng.uniform(800, 2500), 11000, 1))
    drops = [_noise(rng, 0.02, _band(c, 2 * c)) * np.exp(-_time(0.02) / 0.002) for c in rng.uniform(1500, 5000, 6)]
    patter = _scatter(rng, seconds, rng.uniform(100, 400), drops, 0.8)
    return hiss + rng.uniform(0.4, 1.2) * _unit(patter)


def _thunder(rng: Generator, seconds: float) -> Wave:
    t = _time(seconds)
    rumble = _noise(rng, seconds, _lowpass(rng.uniform(70, 140), 1)) * _curve(rng, seconds, 0.1, 1, 0.25)
    crack = _noise(rng, seconds, _lowpass(rng.uniform(600, 1500), 1))
    start = rng.uniform(0.05, 0.2 * seconds)
    since = np.maximum(0, t - start)
    rolling = np.exp(-since / (0.35 * seconds)) * np.clip((t - start) / 0.15, 0.05, 1)
    clap = crack * np.exp(-since / 0.25) * (t >= start) * _curve(rng, seconds, 0, 1, 0.04)
    wave: Wave = rumble * rolling + 0.6 * clap
    return wave


def _wind(rng: Generator, seconds: float) -> Wave:
    out = np.zeros(_samples(seconds))
    for centre in rng.uniform(200, 1100, 5):  # gusts find one gap or another to howl through
        out += _noise(rng, seconds, _peaks([(centre, 0.25 * centre, 1)])) * _curve(rng, seconds, 0, 1, 0.9) ** 2
    return out + 0.6 * _noise(rng, seconds, _lowpass(350, 1)) * _curve(rng, seconds, 0.3, 1, 0.7)


def _waves(rng: Generator, seconds: float) -> Wave:
    u = (_time(seconds) / rng.uniform(3.5, 5.5) + rng.uniform(0, 1)) % 1
    swell = np.where(u < 0.35, (u / 0.35) ** 2, np.exp(-(u - 0.35) / 0.25))
    deep = _noise(rng, seconds, _lowpass(500, 1)) * (0.3 + swell)
    foam = _noise(rng, seconds, _band(1500, 9000, 1)) * (0.05 + swell**1.5)
    return deep + 0.8 * foam


def _stream(rng: Generator, seconds: float) -> Wave:
    bubbles = []
    for pitch in rng.uniform(400, 2600, 40):
        t = _time(0.06)
        bubbles.append(_harmonics(pitch * (1 + 3 * t), [1]) * np.exp(-t / rng.uniform(0.006, 0.02)) * np.minimum(1, t / 0.002))
    wave = _scatter(rng, seconds, rng.uniform(150, 350), bubbles, 0.6)
    return _unit(wave) + 0.35 * _noise(rng, seconds, _band(500, 5000, 1))


def _drips(rng: Generator, seconds: float) -> Wave:
    def drop() -> Wave:
        t = _time(0.25)
        pitch = rng.uniform(700, 1600) * (1 + 2.5 * t)
        return _harmonics(pitch, [1, 0.1]) * np.exp(-t / 0.035) * np.minimum(1, t / 0.001)

    return _hall(rng, _repeat(rng, seconds, drop, 0.35, 1.0), 0.35, 0.3)


def _fire(rng: Generator, seconds: float) -> Wave:
    snaps = []
    for corner in rng.uniform(800, 4000, 10):
        snaps.append(_noise(rng, 0.03, _band(corner, 3 * corner)) * np.exp(-_time(0.03) / rng.uniform(0.0008, 0.006)))
    crackle = _scatter(rng, seconds, rng.uniform(12, 35), snaps, 1.3)
    roar = _noise(rng, seconds, _lowpass(250, 1)) * _curve(rng, seconds, 0.5, 1, 0.2)
    return crackle * (1 / (float(np.abs(crackle).max()) + 1e-9)) + 0.07 * roar


# --- the list -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of sound."""

    make: Callable[[Generator, float], Wave]
    captions: tuple[str, ...]
    """Clauses that describe it, without capital or full stop."""


def _kind(make: Callable[[Generator, float], Wave], captions: str) -> Kind:
    return Kind(make, tuple(captions.split(", ")))


KINDS: dict[str, Kind] = {
    "dog_barking": _kind(_dog, "a dog barks, a dog is barking, barking of a dog, a puppy yaps and barks"),
    "cat_meowing": _kind(_cat, "a cat meows, a cat is meowing, meowing of a cat, a kitten mews"),
    "birds_chirping": _kind(_birds, "a bird chirps, birds are chirping, chirping of a bird, a bird sings and tweets"),
    "rooster_crowing": _kind(_rooster, "a rooster crows, a rooster is crowing, a cock crows loudly, crowing of a rooster"),
    "cow_mooing": _kind(_cow, "a cow moos, a cow is mooing, mooing of a cow, cattle low in a field"),
    "crickets": _kind(_crickets, "crickets chirp, crickets are chirping at night, insects chirp steadily, chirring of crickets"),
    "frog_croaking": _kind(_frog, "a frog croaks, a frog is croaking, croaking of a frog, a toad croaks by a pond"),
    "owl_hooting": _kind(_owl, "an owl hoots, an owl is hooting, hooting of an owl, an owl calls in the night"),
    "fly_buzzing": _kind(_fly, "a fly buzzes, an insect is buzzing, buzzing of a fly, a bee buzzes around"),
    "baby_crying": _kind(_baby, "a baby cries, a baby is crying, crying of an infant, an infant wails"),
    "person_laughing": _kind(_laughter, "a person laughs, someone is laughing, laughter, a person giggles and laughs"),
    "person_whistling": _kind(
        _whistling, "a person whistles, someone whistles a tune, whistling, a person is whistling a melody"
    ),
    "snoring": _kind(_snoring, "a person snores, someone is snoring, snoring, a sleeper snores loudly"),
    "applause": _kind(_applause, "people applaud, an audience claps, applause, a crowd is clapping"),
    "footsteps": _kind(_footsteps, "someone walks, footsteps, a person is walking, footsteps on a hard floor"),
    "siren": _kind(_siren, "a siren wails, an emergency siren sounds, siren wailing, an ambulance siren is blaring"),
    "car_horn": _kind(_car_horn, "a car horn honks, a car is honking, honking of a car, a vehicle blows its horn"),
    "engine_idling": _kind(_engine, "an engine idles, a motor is idling, idling engine, the engine of a truck runs idle"),
    "helicopter": _kind(
        _helicopter, "a helicopter flies, a helicopter is flying overhead, helicopter blades chop, a chopper passes"
    ),
    "train_horn": _kind(_train_horn, "a train horn blows, a train blows its horn, horn of a train, a locomotive sounds its horn"),
    "vacuum_cleaner": _kind(_vacuum, "a vacuum cleaner runs, someone is vacuuming, vacuum cleaner noise, a vacuum cleaner whirs"),
    "drilling": _kind(_drill, "a drill runs, someone is drilling, drilling noise, an electric drill whines"),
    "telephone_ringing": _kind(_telephone, "a telephone rings, a phone is ringing, ringing of a telephone, an old phone rings"),
    "alarm_beeping": _kind(_alarm, "an alarm beeps, an alarm clock is beeping, beeping of an alarm, electronic beeps repeat"),
    "church_bell": _kind(_church_bell, "a church bell rings, a bell is tolling, ringing of a church bell, a large bell tolls"),
    "doorbell": _kind(_doorbell, "a doorbell rings, a doorbell chimes, ringing of a doorbell, a door chime goes ding dong"),
    "clock_ticking": _kind(_clock, "a clock ticks, a clock is ticking, ticking of a clock, a clock goes tick tock"),
    "knocking": _kind(
        _knocking, "someone knocks on a door, knocking on wood, a person is knocking at the door, knocks on a door"
    ),
    "hammering": _kind(_hammering, "someone hammers on metal, hammering, a hammer strikes metal, metal is being hammered"),
    "typing": _kind(_typing, "someone types on a keyboard, typing, a person is typing, keys of a keyboard click"),
    "glass_breaking": _kind(_glass, "glass breaks, glass shatters, breaking of glass, a window is smashed"),
    "explosion": _kind(_explosion, "something explodes, an explosion, a loud blast booms, explosions boom"),
    "piano": _kind(_piano, "a piano plays, someone plays the piano, piano music, a melody on a piano"),
    "guitar": _kind(_guitar, "a guitar plays, someone strums a guitar, guitar chords, an acoustic guitar is strummed"),
    "drums": _kind(_drums, "drums play, someone plays the drums, a drum beat, a drummer plays a rhythm"),
    "rain": _kind(_rain, "rain falls, it is raining, rain patters down, heavy rain pours"),
    "thunder": _kind(_thunder, "thunder rumbles, thunder claps, rolling thunder, a thunderstorm rumbles"),
    "wind": _kind(_wind, "the wind blows, wind is howling, howling wind, gusts of wind blow"),
    "ocean_waves": _kind(_waves, "waves break on a shore, ocean waves, the sea washes up on a beach, waves are crashing"),
    "stream": _kind(_stream, "a stream flows, water is flowing, a brook babbles, water gurgles in a stream"),
    "water_dripping": _kind(_drips, "water drips, water is dripping, dripping of water, drops fall into water"),
    "fire_crackling": _kind(_fire, "a fire crackles, a fire is crackling, crackling of a campfire, wood burns and crackles"),
}


def render(kind: str, rng: Generator, seconds: float) -> NDArray[np.float32]:
    """Mono samples at 32 kHz of one kind, with parameters drawn from `rng`; (seconds x 32000,), peak 0.9.

    Raises:
        KeyError: there is no such kind in `KINDS`.
    """
    wave = KINDS[kind].make(rng, seconds)
    return np.asarray(wave * (0.9 / np.abs(wave).max()), dtype=np.float32)


def render_scene(recipe: str) -> NDArray[np.float32]:
    """The samples of a scene from its description in JSON: seed, seconds, kinds, and how they are joined.

    `{"seed": 0, "seconds": 5.0, "join": "then", "kinds": ["dog_barking", "rain"]}`; `join` is alone, then or with.
    """
    scene = json.loads(recipe)
    seconds = scene["seconds"]
    rng = default_rng(scene["seed"])
    first, *others = scene["kinds"]
    if scene["join"] == "then":
        cut = rng.uniform(0.42, 0.58) * seconds
        return _level(rng, np.concatenate([_fade(render(first, rng, cut)), _fade(render(others[0], rng, seconds - cut))]))
    mix = render(first, rng, seconds)
    for other in others:
        behind = render(other, rng, seconds)
        loudness = np.float32(mix.std() / behind.std() * 10 ** (rng.uniform(-9, -3) / 20))
        mix = mix + loudness * behind
    return _level(rng, mix)


def _fade(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """One of two sounds in a row: as loud as the other, and 20 ms in and out, because sounds that are cut off click."""
    ramp = np.linspace(0, 1, RATE // 50, dtype=np.float32)
    samples = samples / np.float32(max(samples.std(), 1e-6)) * np.float32(0.1)
    samples[: len(ramp)] *= ramp
    samples[-len(ramp) :] *= ramp[::-1]
    return samples


def _level(rng: Generator, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """As a recorder would have it: a peak between 0.25 and 0.9, and the hiss of a room 45 to 65 dB below it."""
    hiss = _noise(rng, len(samples) / RATE, _lowpass(2000, 1)) * 10 ** (rng.uniform(-65, -45) / 20)
    recorded = samples * (1 / np.abs(samples).max()) + hiss
    return np.asarray(recorded * rng.uniform(0.25, 0.9), dtype=np.float32)
