"""Endings that are looked at, and endings that are known and cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from diffatr_cli.data.audio import AUDIO_SUFFIXES, PYAV_SUFFIXES, UNREADABLE_SUFFIXES, load_audio
from diffatr_cli.data.formats import SOUNDFILE_SUFFIXES


def test_the_three_lists_do_not_meet() -> None:
    assert not SOUNDFILE_SUFFIXES & PYAV_SUFFIXES
    assert not AUDIO_SUFFIXES & UNREADABLE_SUFFIXES
    for suffix in AUDIO_SUFFIXES | UNREADABLE_SUFFIXES:
        assert suffix == suffix.lower()
        assert suffix[0] == "."
        assert "." not in suffix[1:]


def test_the_endings_of_people_s_folders_are_known() -> None:
    usual = "aifc wave bwf mp2 mka weba ogv ts mts m2ts flv 3g2 wma spx oga opus caf w64 rf64 m4a m4b amr mov webm ac3 dts ape wv"
    assert {f".{name}" for name in usual.split()} <= AUDIO_SUFFIXES
    assert {".mid", ".aax", ".sd2", ".raw", ".als", ".m4p"} <= UNREADABLE_SUFFIXES


def test_libsndfile_s_formats_are_all_there(tmp_path) -> None:
    """Each that it can write is read back, but for those that are no sound files: tables of numbers, and MIDI's sample dumps."""
    ending = {"SVX": "svx", "MPC2K": None, "MAT4": None, "MAT5": None, "SD2": None, "RAW": None, "IRCAM": "sf", "WAVEX": "wav"}
    for kind in soundfile.available_formats():
        suffix = ending.get(kind, kind.lower())
        if suffix is None or kind == "SDS":
            continue
        assert f".{suffix}" in SOUNDFILE_SUFFIXES, kind
        path = tmp_path / f"{kind}.{suffix}"
        rate = 8000 if kind == "WVE" else 44_100 if kind == "XI" else 32_000
        soundfile.write(path, 0.1 * np.sin(np.arange(rate) / 9), rate, format=kind)
        assert len(load_audio(path)) == pytest.approx(32_000, abs=100), kind


def test_what_pyav_s_containers_are_called_is_known() -> None:
    av = pytest.importorskip("av")
    kinds = "mp4 mov 3gp 3g2 matroska asf avi flv mpegts mpeg mxf aac ac3 eac3 dts amr ape tta wtv rm oma dsf"
    # Pictures, subtitles, and rare second names.
    others = {"avif", "heic", "heif", "psp", "mj2", "ism", "mks", "h261", "apl", "mac", "omg"}
    for kind in kinds.split():
        for name in av.format.ContainerFormat(kind, "r").extensions - others:
            assert f".{name}" in AUDIO_SUFFIXES, kind
