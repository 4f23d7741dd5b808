"""Playing a hit with whatever player the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DiffATRError
from . import signals
from .console import say
from .corpus import clock_span

if TYPE_CHECKING:
    from ..corpus.search import Hit

PLAYERS = ("ffplay", "mpv", "play", "paplay", "aplay", "afplay")
"""Programs that are looked for, in this order."""


def play_hit(path: Path, hit: Hit) -> None:
    """Play a hit's window of a file, with the first player that there is; what goes wrong costs a line, no failure."""
    program = next(filter(None, map(shutil.which, PLAYERS)), None)
    if program is None:
        say("--play: there is no player here. Install ffmpeg (with its ffplay), mpv or sox.")
        return
    say(f"playing {clock_span(hit)} of {path}")
    try:
        with signals.unwinding(), tempfile.TemporaryDirectory() as folder:
            command = [program, *_play_arguments(Path(program).stem, path.absolute(), hit, Path(folder))]
            # What a player prints is no result of ours, and the keys are not its own.
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode
            if code:
                say(f"--play: {program} failed (exit code {code}).")
    except KeyboardInterrupt:
        if not signals.dealt_with():  # Ctrl-C ends the sound alone
            raise
    except OSError as error:
        say(f"--play: {program}: {error.strerror}")
    except DiffATRError as error:
        say(f"--play: {error}")


def _play_arguments(player: str, path: Path, hit: Hit, folder: Path) -> list[str]:
    """What to tell a player; `path` is absolute, so that no name is taken for an option or an address."""
    if player == "ffplay":
        quiet = ("-nodisp", "-autoexit", "-loglevel", "error")
        return [*quiet, "-ss", f"{hit.start:.3f}", "-t", f"{hit.end - hit.start:.3f}", "-i", os.fspath(path)]
    if player == "mpv":
        return ["--no-video", "--really-quiet", f"--start={hit.start:.3f}", f"--end={hit.end:.3f}", "--", os.fspath(path)]
    # The others cannot seek or know few formats, and sox takes brackets in a name for a pattern: they get the window as a WAV.
    from ..data.excerpt import read_excerpt
    from ..data.write_wav import to_pcm16, write_wav

    write_wav(folder / "hit.wav", to_pcm16(read_excerpt(path, hit.start, hit.end)))
    return [*(("-q",) if player == "play" else ()), os.fspath(folder / "hit.wav")]
