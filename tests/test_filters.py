"""The grammar of filters, and what it finds, beside a plain loop over the files."""

import os
from datetime import date, timedelta
from fnmatch import fnmatchcase
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffatr_cli.corpus.filtering import Columns, is_in
from diffatr_cli.corpus.filters import FilterError, Interval, read_filters, read_query
from diffatr_cli.corpus.notes import Note, Notes, day_of
from diffatr_cli.corpus.snapshot import Recordings
from diffatr_cli.corpus.words import parts_of, stem

FIRST = date(1970, 1, 1)
FOLDERS = ["", "field", "field/day 1", "Field Recordings", "old/2024_field", "music", "Musik"]
NAMES = ["dog_bark", "DOORWood_Creak", "untitled_03", "rain-music", "café"]
DAYS = ["2023-12-31", "2024-01-01", "2024-05-31", "2024-06-01"]
DATES = ["2024", ">=2024", "<2024", ">2024-05", "<=2024-05", "2024-01-01..2024-05", "..2023"]
WORDS = ["format:wav", "-format:wav,FLAC", 'format:".mp3"', "in:music", "in:*field*", "-music"]
SOME = ["length:>1", "in:field", "-format:mp3", "channels:1,2", "-dog"]
PLAIN = [
    "a dog barks",
    "high-pitched  tone ",
    "-3 dB tone",
    "at 12:30 bells",
    "note: rain",
    '12" vinyl',
    "a - b",
    "--",
    "foley:steps",
]
FORMATS = ["wav", "WAV", "flac", "mp3"]


def recordings_of(files):
    paths = sorted({os.path.join(each.folder, f"{each.name}{i}.{each.format}"): each for i, each in enumerate(files)}.items())
    of = [each for _, each in paths]
    spans = np.array([(0.0, each.seconds) for each in of]).reshape(-1, 2)
    notes = Notes.of([path for path, _ in paths], [Note(each.channels, each.rate, each.day, "") for each in of])
    count = len(of)
    known = Recordings([p for p, _ in paths], np.arange(count), np.arange(count + 1), spans, np.zeros((count, 1), np.float32))
    return Recordings(**{**known.__dict__, "notes": notes}), of


files = st.builds(
    SimpleNamespace,
    folder=st.sampled_from(FOLDERS),
    name=st.sampled_from(NAMES),
    format=st.sampled_from(FORMATS),
    seconds=st.sampled_from([0.2, 1.0, 4.5, 5.0, 5.49, 5.5, 89.6, 90.0, 3600.0]),
    channels=st.sampled_from([0, 1, 2, 6]),
    rate=st.sampled_from([0, 22050, 44100, 48000, 96000]),
    day=st.sampled_from(
        [-1, *((date(*each) - FIRST).days for each in ((2023, 12, 31), (2024, 1, 1), (2024, 5, 31), (2024, 6, 1)))]
    ),
)
OPS = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}


@given(st.lists(files, max_size=12), st.sampled_from(list(OPS)), st.sampled_from(["0.2", "5", "5s", "90", "1.5min", "1:30"]))
def test_lengths_are_compared_as_a_plain_loop_compares_them(given_files, sign, said):
    recordings, of = recordings_of(given_files)
    seconds = {"0.2": 0.2, "5": 5.0, "5s": 5.0}.get(said, 90.0)
    for minus in ("", "-"):
        got = Columns.of(recordings).fitting(read_filters(f"{minus}length:{sign}{said}"))
        assert got.tolist() == [OPS[sign](each.seconds, seconds) != bool(minus) for each in of]


@given(st.lists(files, max_size=12), st.booleans())
def test_what_is_not_known_fits_no_filter_and_no_negated_one(given_files, negated):
    recordings, of = recordings_of(given_files)
    minus = "-" if negated else ""
    for text, key, fits in (
        (f"{minus}channels:stereo", "channels", lambda value: value == 2),
        (f"{minus}channels:2..6", "channels", lambda value: 2 <= value <= 6),
        (f"{minus}rate:44.1k,96khz", "rate", lambda value: value in (44100, 96000)),
        (f"{minus}rate:>44100", "rate", lambda value: value > 44100),
    ):
        values = [getattr(each, key) for each in of]
        got = Columns.of(recordings).fitting(read_filters(text))
        assert got.tolist() == [value > 0 and fits(value) != negated for value in values]


@given(st.lists(files, max_size=12), st.sampled_from(DATES))
def test_dates_are_whole_years_months_and_days(given_files, said):
    recordings, of = recordings_of(given_files)
    day = {
        "2024": lambda d: d.year == 2024,
        ">=2024": lambda d: d.year >= 2024,
        "<2024": lambda d: d.year < 2024,
        ">2024-05": lambda d: (d.year, d.month) > (2024, 5),
        "<=2024-05": lambda d: (d.year, d.month) <= (2024, 5),
        "2024-01-01..2024-05": lambda d: date(2024, 1, 1) <= d <= date(2024, 5, 31),
        "..2023": lambda d: d.year <= 2023,
    }[said]
    got = Columns.of(recordings).fitting(read_filters(f"date:{said}"))
    assert got.tolist() == [each.day >= 0 and day(FIRST + timedelta(each.day)) for each in of]


@given(st.lists(files, max_size=12), st.sampled_from(WORDS))
def test_words_of_folders_formats_and_names(given_files, text):
    recordings, of = recordings_of(given_files)
    words = [{stem(part) for part in parts_of(f"{each.folder} {each.name}")} for each in of]
    parts = [each.folder.casefold().split("/") for each in of]
    want = {
        "format:wav": [each.format.lower() == "wav" for each in of],
        "-format:wav,FLAC": [each.format.lower() not in ("wav", "flac") for each in of],
        'format:".mp3"': [each.format == "mp3" for each in of],
        "in:music": ["music" in each for each in parts],
        "in:*field*": [any(fnmatchcase(part, "*field*") for part in each) for each in parts],
        "-music": [stem("music") not in each for each in words],
    }[text]
    assert Columns.of(recordings).fitting(read_filters(text)).tolist() == want


@given(st.lists(files, max_size=12), st.lists(st.sampled_from(SOME), max_size=4))
def test_filters_apply_together(given_files, filters):
    recordings, _ = recordings_of(given_files)
    columns = Columns.of(recordings)
    each = [columns.fitting(read_filters(text)) for text in filters]
    assert (
        columns.fitting(read_filters(" ".join(filters))) == np.logical_and.reduce([np.ones(len(recordings), bool), *each])
    ).all()


@pytest.mark.parametrize(
    ("folder", "word", "found"),
    [
        ("field/day 1", "field", True),
        ("Field Recordings", "field", True),
        ("fields", "field", False),
        ("a/field/day1/take", "field/day1", True),
        ("field/x/day1", "field/day1", False),
        ("2024_FieldRec", "field", True),
        ("x", "field", False),
        ("", "field", False),
        ("Über/Müll", "müll", True),
        ("a/takes_2", "take*", True),
        ("field", "day1/field", False),
    ],
)
def test_a_folder_is_named_by_its_words_or_by_a_pattern(folder, word, found):
    assert is_in(folder.replace("/", os.sep), word) is found


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("dog length:<5 in:field -music", "dog", ["length:<5", "in:field", "-music"]),
        ("length:<5 a dog barks", "a dog barks", ["length:<5"]),
        ('dog in:"wet field" -"wind noise"', "dog", ['in:"wet field"', '-"wind noise"']),
        ('"length:<5" is said -x', "length:<5 is said", ["-x"]),
        ("FORMAT:Wav Duration:1..2 rain", "rain", ["FORMAT:Wav", "Duration:1..2"]),
        ("-in:old rain", "rain", ["-in:old"]),
    ],
)
def test_filters_are_told_from_the_sound(text, words, said):
    asked = read_query(text)
    assert (asked.words, [each.said for each in asked.conditions]) == (words, said)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_filter_is_left_as_it_is(text):
    assert read_query(text) == (text, ())


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.text("abd:<>=.,-\"'*/ 015inlefmtgh", max_size=30)


def wrong_at(text):
    """Where a text is wrong; None where it is not."""
    try:
        read_query(text)
    except FilterError as error:
        return error.at
    return None


@given(TEXTS)
def test_any_text_is_read_or_told_where_it_is_wrong(text):
    if (at := wrong_at(text)) is not None:
        assert 0 <= at[0] < at[1] <= len(text)
        return
    asked = read_query(text)
    assert asked.words == text or asked.conditions
    assert all(each.said in text for each in asked.conditions)
    assert all(interval.low <= interval.high for each in asked.conditions for interval in each.intervals)


@pytest.mark.parametrize(
    ("text", "marked", "words"),
    [
        ("dog lenght:<5", "lenght", "Did you mean length:?"),
        ("dog length:<", "<", "no length of time"),
        ("dog length:five", "five", "no length of time"),
        ("dog length:", ":", "needs a value"),
        ("rate:fast dog", "fast", "no sample rate"),
        ("date:2024-13 dog", "2024-13", "no date"),
        ("date:2024-02-30 dog", "2024-02-30", "no date"),
        ("length:9..2 dog", "9..2", "ends before it begins"),
        ("length:.. dog", "..", "both ends"),
        ("channels:1,,2 dog", ",", "missing"),
        ("format:, dog", ",", "missing"),
        ('in:"" dog', '""', "no name"),
        ("size:>5 dog", "size", "There are length, in"),
        ("dog channels:1,many", "many", "no number of channels"),
    ],
)
def test_errors_point_at_the_place(text, marked, words):
    with pytest.raises(FilterError, match=words.replace("?", r"\?")) as caught:
        read_query(text)
    start, end = caught.value.at
    assert text[start:end] == marked
    shown, marks = str(caught.value).splitlines()[-2:]
    assert shown == f"  {text}"
    assert marks == " " * (2 + start) + "^" * (end - start)


def test_marks_stand_below_wide_letters():
    with pytest.raises(FilterError) as caught:
        read_query("犬 length:x")
    assert str(caught.value).splitlines()[-1] == " " * 12 + "^"


def test_filters_alone_take_no_words():
    with pytest.raises(FilterError, match="dog is no filter"):
        read_filters("length:<5 dog")
    assert read_filters("") == ()


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_an_interval_holds_what_lies_in_it(one, other):
    assume(one != other)
    low, high = sorted((one, other))
    assert all(Interval(low, high).holds(value) for value in (low, high))
    assert not any(Interval(low, high, True, True).holds(value) for value in (low, high))


def test_days_beyond_the_calendar_are_not_known():
    assert day_of(None, 10**30) == -1
    assert day_of(None, -(10**18)) == -1
    assert day_of(date(2024, 5, 1), 0) == (date(2024, 5, 1) - FIRST).days
    assert day_of(None, 86_400 * 10**9) == 1
