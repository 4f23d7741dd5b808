"""Sound in blocks: bounded, the same as the whole, and one file's trouble is one file's reason."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import shorten, sine, tone, write

from diffatr_cli.data import sound as module
from diffatr_cli.data.audio import AudioError, load_audio, open_sound
from diffatr_cli.data.convert import Converter
from diffatr_cli.data.excerpt import duration, read_excerpt
from diffatr_cli.data.sound import MOST_SAMPLES
from diffatr_cli.data.soundfile_decoder import SoundFileDecoder

FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
}


def blocks_of(path: Path) -> list[np.ndarray]:
    with open_sound(path) as sound:
        return list(sound.blocks())


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_memory_does_not_grow_with_length(tmp_path: Path, ending: str, channels: int) -> None:
    """Python and numpy tell what they hold: as much for forty seconds, which are 5 MB as samples, as for ten."""
    rate = 48_000 if ending == "opus" else 44_100
    second = np.stack([sine(1, rate) + np.random.default_rng(channel).normal(0, 0.01, rate) for channel in range(channels)], 1)
    blocks_of(tone(tmp_path / "first.wav", rate=44_100))  # what is imported on the way
    peaks = []
    for seconds in (10, 40):
        path = tmp_path / f"{seconds}.{ending}"
        with soundfile.SoundFile(path, "w", rate, channels, **FORMATS[ending]) as file:
            for _ in range(seconds):
                for part in np.split(second, 5):
                    file.write(part)
        tracemalloc.start()
        with open_sound(path) as sound:
            total = sum(map(len, sound.blocks()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == pytest.approx(seconds * 32_000, abs=2000)
    assert peaks[1] < peaks[0] + 500_000


def test_blocks_are_bounded_and_joined_they_are_the_whole(tmp_path: Path) -> None:
    for rate in (1000, 11_025, 32_000, 96_000):
        path = write(tmp_path / "a.wav", sine(40, rate, 100), rate)
        blocks = blocks_of(path)
        assert max(map(len, blocks)) <= MOST_SAMPLES
        whole = np.concatenate(blocks)
        np.testing.assert_array_equal(whole, load_audio(path))
        assert len(whole) == 40 * 32_000
        # By libsndfile and soxr in one piece.
        import soxr

        samples, _ = soundfile.read(path, dtype="float32")
        np.testing.assert_allclose(whole, soxr.resample(samples, rate, 32_000, quality="HQ"), atol=1e-6)


def test_a_stretch_is_the_same_as_in_the_whole(tmp_path: Path) -> None:
    for ending, options in FORMATS.items():
        rate = 48_000 if ending == "opus" else 32_000
        path = write(tmp_path / f"a.{ending}", sine(6, rate, 700), rate, **options)
        whole = load_audio(path)
        assert duration(path) == pytest.approx(6, abs=0.01)
        for start, end in ((0, 1), (2.5, 3), (5.5, 9), (8, 9)):
            part = read_excerpt(path, start, end)
            expected = whole[round(start * 32_000) : round(end * 32_000)]
            assert len(part) == pytest.approx(len(expected), abs=1)
            np.testing.assert_allclose(part[200:-200], expected[200 : len(part) - 200], atol=0.02 if ending == "opus" else 0.003)


@pytest.mark.parametrize("scale", [1.0, 4.0, 32_767.0, 8_388_607.0, 2_147_483_647.0])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_on_the_scale_of_integers_are_scaled(tmp_path: Path, scale: float, subtype: str) -> None:
    """Decided for the whole file, though the beginning is as quiet as on any scale."""
    quiet = np.concatenate([1e-5 * sine(3, 32_000), sine(1, 32_000)])
    path = write(tmp_path / "a.wav", scale * quiet, 32_000, subtype=subtype)
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound.blocks()))
    integers = scale > 16
    np.testing.assert_allclose(samples, quiet if integers else scale * quiet, rtol=1e-3, atol=1e-6)
    assert sound.notes == [f"its samples are on the scale of integers, and were divided by {scale + 1:.0f}"] * integers
    np.testing.assert_allclose(read_excerpt(path, 0, 1), samples[:32_000], rtol=1e-6)


@pytest.mark.parametrize("value", [17.0, -30_000.0, 2e9, 1e20, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 20])
def test_stray_samples_are_no_scale(tmp_path: Path, value: float, count: int) -> None:
    """A few broken samples of a float file cost themselves: neither the file, nor the scale of the others."""
    good = 0.3 * sine(2, 32_000)
    broken = good.copy()
    broken[1000 : 1000 + 7 * count : 7] = value
    path = write(tmp_path / "a.wav", broken, 32_000, subtype="FLOAT")
    with open_sound(path) as sound:
        samples = np.concatenate(list(sound.blocks()))
    expected = good.copy()
    expected[1000 : 1000 + 7 * count : 7] = 0 if np.isnan(value) else np.sign(value)
    np.testing.assert_array_equal(samples, expected.astype(np.float32))
    assert sound.notes == [f"samples that are no numbers or far beyond full scale were silenced or clipped, {count} of them"]
    np.testing.assert_array_equal(read_excerpt(path, 0, 1), samples[:32_000])


@pytest.mark.parametrize(
    ("change", "reason"),
    [(np.nan, "NaN or infinite samples"), (np.inf, "NaN or infinite samples"), (1e20, "samples beyond any scale")],
)
def test_numbers_that_are_no_sound(tmp_path: Path, change: float, reason: str) -> None:
    samples = sine(3, 32_000)
    samples[70_000:70_500] = change
    for channels in (1, 2):
        path = write(tmp_path / "a.wav", np.stack([samples] * channels, 1), 32_000, subtype="FLOAT")
        with pytest.raises(AudioError) as caught:
            blocks_of(path)
        assert caught.value.reason == reason


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "use",
    [
        load_audio,
        blocks_of,
        lambda path: read_excerpt(path, 0, 1),
        lambda path: next(iter(load_audio(path) for _ in range(1))),
    ],
)
@pytest.mark.parametrize("where", ["blocks", "__init__"])
def test_too_little_memory_is_that_file_s_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object], where: str
) -> None:
    path = tone(tmp_path / "a.flac")
    monkeypatch.setattr(SoundFileDecoder, where, no_memory)
    with pytest.raises(AudioError, match=r"a\.flac: not enough memory to read it"):
        use(path)
    assert Converter()(str(path), tmp_path / "out.wav").skipped == "not enough memory to read it"
    assert not (tmp_path / "out.wav").exists()


def test_libsndfile_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tone(tmp_path / "a.wav")

    def refuse(self: object, *_: object) -> None:
        raise soundfile.LibsndfileError(17)  # its code for it

    monkeypatch.setattr(soundfile.SoundFile, "_open", refuse)
    with pytest.raises(AudioError, match="not enough memory"):
        load_audio(path)


def test_what_only_looks_like_many_recordings_is_left_after_some(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.flac")
    whole = path.read_bytes()
    path.write_bytes(whole * 2 + b"fLaC\0\0\0\x22" * 5 + whole + b"fLaC\0\0\0\x22" * 10_000)
    with open_sound(path) as sound:
        assert sum(map(len, sound.blocks())) == 3 * 16_000
        assert sound.partial
        assert len(sound.notes) < 20
        assert sound.notes[-1].endswith("recordings behind these are not read")


def test_a_flac_of_unknown_length_and_one_that_is_cut(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.flac", sine(3, 44_100) + 0.01 * sine(3, 44_100, 5000), 44_100).read_bytes())
    content[21] &= 0xF0  # the count of samples, as an encoder leaves it that writes to a pipe
    content[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(content)
    assert len(load_audio(tmp_path / "b.flac")) == 96_000
    joined = tmp_path / "joined.flac"
    joined.write_bytes((tmp_path / "a.flac").read_bytes() + bytes(content))
    assert len(load_audio(joined)) == 192_000
    stump = shorten(tmp_path / "a.flac", 0.5)
    with pytest.raises(AudioError, match="truncated"):
        load_audio(stump)
    kept = load_audio(stump, partial="keep")
    assert 0.4 < len(kept) / 96_000 < 0.6
    np.testing.assert_allclose(kept[1000:-1000], load_audio(tmp_path / "b.flac")[1000 : len(kept) - 1000], atol=1e-6)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_nothing_is_allocated_on_a_header_s_word(tmp_path: Path) -> None:
    """Small files with any header, in a process that may not have a gigabyte more than it begins with."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits of memory work differently elsewhere")
    rng = np.random.default_rng(0)
    kinds = [
        ("WAV", "PCM_16"),
        ("WAV", "IMA_ADPCM"),
        ("RF64", "PCM_24"),
        ("W64", "FLOAT"),
        ("AIFF", "PCM_16"),
        ("CAF", "ALAC_16"),
    ]
    kinds += [
        ("AU", "ULAW"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
        ("NIST", "PCM_16"),
        ("VOC", "PCM_U8"),
    ]
    words = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\1", bytes(4)]
    for kind, subtype in kinds:
        stream = io.BytesIO()
        soundfile.write(stream, sine(0.2, 32_000), 32_000, format=kind, subtype=subtype)
        for number in range(25):
            content = bytearray(stream.getvalue()[:4000])
            for _ in range(int(rng.integers(1, 4))):
                at = int(rng.integers(0, min(len(content) - 4, 200)))
                content[at : at + 4] = words[int(rng.integers(len(words)))]
            (tmp_path / f"{kind}-{subtype}-{number}.bin").write_bytes(content)
    done = run(
        """
        import resource, sys
        from pathlib import Path
        from diffatr_cli.data.audio import AudioError, load_audio
        from diffatr_cli.data.excerpt import read_excerpt
        import soxr, importlib.util
        if importlib.util.find_spec("av"):
            import av
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read = 0
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                read += len(load_audio(path, partial="keep")) > 0
                read_excerpt(path, 0.1, 0.2)
            except AudioError as error:
                assert "memory" not in error.reason, error
        print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    read, grown = map(int, done.stdout.split())
    assert read > 50
    assert grown < 150_000  # kB


def test_the_mp3_decoder_keeps_its_remarks_to_itself(tmp_path: Path) -> None:
    """And what Python's threads write to stderr meanwhile is all there."""
    content = bytearray(write(tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.2, 44_100 * 4), 44_100).read_bytes())
    for at in np.random.default_rng(1).integers(1000, len(content), 300):
        content[at] ^= 0x55
    (tmp_path / "a.mp3").write_bytes(content)
    script = """
        import sys, threading, time, soundfile
        from diffatr_cli.data.audio import load_audio
        if sys.argv[2] == "plain":
            with soundfile.SoundFile(sys.argv[1]) as file:
                file.read()
        else:
            ended = threading.Event()
            def talk():
                for number in range(200):
                    print("line", number, file=sys.stderr, flush=True)
                    time.sleep(0.002)
                ended.set()
            talker = threading.Thread(target=talk)
            talker.start()
            while True:
                print(len(load_audio(sys.argv[1], partial="keep")))
                if ended.is_set():
                    break
    """
    assert "mpg123" in run(script, tmp_path / "a.mp3", "plain").stderr  # or this test tests nothing
    done = run(script, tmp_path / "a.mp3", "quiet")
    assert done.stderr.split("\n") == [*(f"line {number}" for number in range(200)), ""]
    assert int(done.stdout.split()[0]) > 60_000


def test_the_same_name_with_another_content_is_another_file(tmp_path: Path) -> None:
    """What is remembered of a file's layout belongs to its content."""
    path = write(tmp_path / "a.ogg", sine(1, 32_000), 32_000)
    one = path.read_bytes()
    assert len(load_audio(path)) == 32_000
    path.write_bytes(one + one)
    assert len(load_audio(path)) == 64_000
    path.write_bytes(one)
    assert len(load_audio(path)) == 32_000


def test_a_part_that_cannot_be_read_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three links is damaged: it is named, and the others are heard."""
    content = write(tmp_path / "a.ogg", sine(1, 32_000), 32_000).read_bytes()
    broken = bytearray(content)
    broken[30:60] = bytes(30)
    path = tmp_path / "b.ogg"
    path.write_bytes(content + bytes(broken) + content)
    with open_sound(path) as sound:
        assert sum(map(len, sound.blocks())) == 64_000
    assert sound.partial
    assert any(note.startswith("from 1.0 s on: ") for note in sound.notes)


def test_closing_early_lets_go_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sine(20, 32_000), 32_000)
    opened: list[SoundFileDecoder] = []
    original = module.SoundFileDecoder

    def watched(*arguments: object) -> SoundFileDecoder:
        opened.append(original(*arguments))  # type: ignore[arg-type]
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SoundFileDecoder", watched)
        with open_sound(path):
            pass
        with open_sound(path) as sound:
            blocks: Iterator[np.ndarray] = sound.blocks()
            next(blocks)
            blocks.close()  # type: ignore[attr-defined]
    assert len(opened) == 2
    assert all(decoder._file.closed for decoder in opened)


@pytest.mark.parametrize("resampler", ["soxr", "resampy"])
def test_a_recording_beside_the_zero_line_does_not_click(tmp_path: Path, resampler: str) -> None:
    path = write(tmp_path / "a.wav", np.full(44_100, 0.3) + 0.01 * sine(1, 44_100), 44_100, subtype="FLOAT")
    samples = load_audio(path, resampler)  # type: ignore[arg-type]
    np.testing.assert_allclose(samples, 0.3 + 0.01 * sine(1, 32_000), atol=3e-3)


def test_samples_of_a_kind_that_nothing_reads_are_not_called_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sine(1, 32_000), 32_000)
    data = bytearray(path.read_bytes())
    data[32:36] = (8).to_bytes(2, "little") + (64).to_bytes(2, "little")  # bytes a frame, bits a sample: whole numbers of 64 bits
    path.write_bytes(data)
    with pytest.raises(AudioError) as caught:
        blocks_of(path)
    assert caught.value.reason.startswith("samples of a kind that cannot be read")
