"""Names split as people write them, and which files have the words of a query, beside the plain formula."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffatr_cli.corpus.name_index import IN_FOLDER, IN_NAME, IN_TEXT, NameIndex, index_names
from diffatr_cli.corpus.words import parts_of, stem, stems_of


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("DOORWood_Old Door Creak_JK_S01", ["door", "wood", "old", "door", "creak", "jk", "s", "01"]),
        ("dogBark03", ["dog", "bark", "03"]),
        ("rain-on-tin.take2", ["rain", "on", "tin", "take", "2"]),
        ("XMLHttp", ["xml", "http"]),
        ("808kick", ["808", "kick"]),
        ("untitled_03", ["untitled", "03"]),
        ("Türen schließen", ["turen", "schließen"]),
        ("E\N{COMBINING ACUTE ACCENT}te", ["ete"]),
        ("собакаLäuft", ["собака", "lauft"]),
        ("犬が吠える", ["犬が吠える"]),
        ("__--__", []),
    ],
)
def test_names_are_split_as_people_write_them(name, parts):
    assert parts_of(name) == parts


@pytest.mark.parametrize(
    "forms",
    [
        "bark barks barking barked",
        "cry cries crying cried",
        "run runs running",
        "hiss hisses hissing hissed",
        "close closes closing closed",
        "buzz buzzes buzzing",
        "horse horses",
        "glass",
        "drip drips dripping dripped",
    ],
)
def test_forms_of_a_word_have_one_stem(forms):
    assert len({stem(form) for form in forms.split()}) == 1


@pytest.mark.parametrize("words", ["bus bush", "ring bring string", "seed see", "glass glas", "king kin", "wind wine"])
def test_other_words_have_other_stems(words):
    assert len({stem(word) for word in words.split()}) == len(words.split())


def test_numbers_lose_their_zeros_and_idle_words_are_not_asked_for():
    assert stem("0003") == stem("3") != stem("30")
    assert stem("000") == "0"
    assert list(stems_of("the sound of a dog in some recordings")) == ["dog"]
    assert list(stems_of("3 dogs and 007 808 kicks")) == ["dog", "808", "kick"]


@given(st.text(max_size=60))
def test_any_name_is_split_into_words(name):
    for part in parts_of(name):
        assert part
        assert len(part) <= 40
        assert stem(part)


WORDS = ["dog", "bark", "rain", "door", "bell", "take"]
names = st.lists(st.tuples(*(st.lists(st.sampled_from(WORDS), max_size=3) for _ in range(3))), max_size=8)


@given(names, st.lists(st.sampled_from([*WORDS, "wolf"]), min_size=1, max_size=3, unique=True))
def test_scores_are_those_of_the_plain_formula(given_names, words):
    """The share of the words' rarity that a file has, each by the best place where it stands."""
    paths = [f"{'_'.join(folder)}/{'_'.join(name)}.wav" for folder, name, _ in given_names]
    index = index_names(paths, [" ".join(text) for _, _, text in given_names])
    count = len(paths)

    def have(word):  # a word, or, in a name, two that make it
        return [
            IN_NAME if word in name or word in [a + b for a, b in pairwise(name)]
            else IN_FOLDER if word in folder
            else IN_TEXT if word in text
            else 0.0
            for folder, name, text in given_names
        ]  # fmt: skip

    def rarity(word):
        df = sum(value > 0 for value in have(word))
        return math.log1p((count - df + 0.5) / (df + 0.5))

    want, total = np.zeros(count), 0.0
    for i, word in enumerate(words):
        options = [word]
        options += [words[i - 1] + word] if i else []
        options += [word + words[i + 1]] if i + 1 < len(words) else []
        weight = min(map(rarity, options))
        want += weight * np.max([have(option) for option in options], 0) if count else 0
        total += weight
    got = index.scores(" ".join(words))
    assert got == pytest.approx(want / total, abs=1e-5)
    again = NameIndex.of_arrays(count, index.arrays())
    assert (again.scores(" ".join(words)) == got).all()
    for word in words:
        assert index.having(word).tolist() == [value > 0 for value in have(word)]


def test_words_that_are_written_as_one_or_as_two_are_found_by_both():
    index = index_names(["doorbell.wav", "Door Bell.wav", "DOORBell_x.wav", "bell.wav"], [""] * 4)
    assert index.scores("doorbell").tolist() == [1, 1, 1, 0]
    assert (index.scores("door bell")[:3] == 1).all()


def test_queries_without_a_word_find_nothing():
    index = index_names(["dog.wav"], [""])
    assert index.scores("the sound of").tolist() == [0]
    assert index.scores("").tolist() == [0]
    assert index.having("...").tolist() == [False]
    assert index_names([], []).scores("dog").tolist() == []
    assert NameIndex.of_arrays(0, index_names([], []).arrays()).having("dog").tolist() == []
