"""A folder as people who work with sound have it, with `diffatr serve` on it, and what they do on the page."""

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
from browser import until
from command_line import DIFFATR, start, typed

from diffatr_cli.data.sounds import RATE, render

CLIPS = Path(__file__).parents[1] / "examples" / "clips"
FOLDERS = {
    "field/2024": "birds_in_the_morning evening_at_the_lake walk_through_a_village sea_waves crickets_at_night frog_by_a_pond "
    "thunder rain_on_a_roof",
    "home": "alarm_clock_beeping baby_crying campfire_crackling door_knocking footsteps_on_a_hard_floor glass_breaking laughing "
    "telephone_ringing typing_on_a_keyboard piano_melody",
    "city": "car_horn church_bell helicopter_overhead police_siren applause_after_a_concert",
    "animals": "dog_barking cat_meowing cow_mooing",
}
GOOD = 30
"""Files of `make_folder` that can be searched; two more cannot."""
SLOW = 120
"""Seconds that an answer may take on a machine with other work: nobody's goal, only when a test gives up."""


def made(kind, seconds, seed=0):
    """A procedural sound, 32 kHz mono."""
    return render(kind, np.random.default_rng(seed), seconds)


def studio(samples):
    """As a recorder writes it: 48 kHz, two channels."""
    return np.stack([soxr.resample(0.8 * samples, RATE, 48_000)] * 2, axis=1)


def make_folder(folder):
    """The example clips in folders; a recording by a recorder, one with a description inside, one whose name lies, a long one
    in which a dog barks from 0:40 to 0:50, and two that are broken."""
    for below, names in FOLDERS.items():
        (folder / below).mkdir(parents=True)
        for name in names.split():
            shutil.copy(CLIPS / f"{name}.ogg", folder / below)
    (folder / "sessions").mkdir()
    soundfile.write(folder / "sessions" / "ZOOM0012.WAV", studio(made("rooster_crowing", 6, 3)), 48_000, "PCM_24")
    quiet = 0.2 * made("wind", 60, 1)
    quiet[40 * RATE : 50 * RATE] += 0.8 * made("dog_barking", 10, 2)
    soundfile.write(folder / "sessions" / "take7.wav", studio(quiet), 48_000, "PCM_24")
    with soundfile.SoundFile(folder / "sessions" / "0007.wav", "w", RATE, 1) as file:
        file.title = "Tawny owl, Richmond Park"
        file.write(made("owl_hooting", 6, 1))
    (folder / "incoming").mkdir()
    soundfile.write(folder / "incoming" / "dog_barking_FINAL.wav", made("stream", 5, 4), RATE)
    (folder / "incoming" / "half_a_download.wav").write_bytes(b"RIFF")
    (folder / "incoming" / "invoice.wav").write_text("Dear Sir or Madam\n" * 50)
    return folder


@contextlib.contextmanager
def served(*arguments, log):
    """`diffatr serve ARGUMENTS` as a process of its own; gives the page's address. What it says goes into `log`."""
    with log.open("w") as said:
        process = start([*DIFFATR, "serve", "--port", "0", "--no-open", *arguments], stderr=said)
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), log.read_text()
            yield address
        finally:
            process.terminate()
            process.wait(SLOW)
            process.stdout.close()


def at_rest(page):
    """Wait until the page says that everything is indexed."""
    until(page, "state.files > 0 && !state.indexing", SLOW)


def search(page, text):
    """Write it and press Enter. Gives the names that are shown then."""
    page.locator("#q").fill(text)
    return answer_to(page, lambda: page.locator("#q").press("Enter"))


def answer_to(page, act):
    """Do what asks for an answer, and wait for it, be it that there is none. Gives the names that are shown then."""
    page.evaluate("before = hits")
    act()
    until(page, "hits !== before && !document.body.classList.contains('busy')", SLOW)
    return shown(page)


def shown(page):
    return page.locator(".hit:visible .name bdi:not(.of)").all_text_contents()


def goto(page, name):
    """Go to a sound of the list with the arrow keys."""
    place = shown(page).index(name)
    page.keyboard.press("Escape")  # from the search box into the list
    page.keyboard.press("Home")
    for _ in range(place):
        page.keyboard.press("ArrowDown")
    assert page.locator(".hit.chosen .name bdi:not(.of)").text_content() == name


def told(page):
    """The sentences about the answer."""
    return page.locator("#verdict").inner_text()


def place_found(page):
    """Seconds from and to which the chosen sound's part goes, as it stands on the page."""
    times = re.findall(r"(\d+):(\d\d)", page.locator(".hit.chosen .meta").inner_text())
    begin, end = (60 * int(minutes) + int(seconds) for minutes, seconds in times[:2])
    return begin, end


def in_time(page, condition):
    """Wait for something that happens outside of the page."""
    end = time.monotonic() + SLOW
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        page.wait_for_timeout(300)


def programme(*arguments):
    """`diffatr ARGUMENTS --json`, as a script reads it."""
    result = typed([*arguments, "--json"])
    assert result.code == 0, result.err
    return json.loads(result.out), result.err
