"""How the labels that a model gives are counted."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_retriever import FakeRetriever, write_tone

from diffatr_cli.core.calibration import Calibration, Logistic
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.data.vocabulary import Label

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import evaluate_labels

COMPOSER: Any = SimpleNamespace(
    EVENTS={
        "rain": ([], ["300 Hz"], ["300 hz of drops"]),
        "heavy_rain": ([], ["900 Hz"], []),  # which is rain, by `small_queries.ALSO`
        "light_rain": ([], ["800 Hz"], []),
        "wipers": ([], ["700 Hz"], []),
        "dog_bark": ([], ["4000 Hz"], []),
        "bell": ([], ["2000 Hz"], []),
    }
)
LABELS = [
    Label(name, caption, {}) for name, caption in (("rain", "300 Hz"), ("dog", "4000 Hz"), ("bell", "2000 Hz"), ("?", "60 Hz"))
]


def test_a_label_means_the_kinds_that_answer_it() -> None:
    meant = evaluate_labels.kinds_of_labels(COMPOSER, LABELS)
    assert meant == [{"rain", "heavy_rain", "light_rain", "wipers"}, {"dog_bark"}, {"bell"}, set()]


def test_labels_are_counted_as_tag_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hz in (("rain", 300), ("wet", 301), ("dog", 4000), ("odd", 14000)):
        write_tone(tmp_path / f"{name}.wav", hz, 1, seed=hz)
    model: Any = FakeRetriever()
    # By cosine alone: 0.95 where it is 1, 0.05 at 0.8; a list fits a sound where its best cosine is above 0.9.
    model.calibration = Calibration(
        None, Logistic((29.4,), -26.5), None, None, captions=Logistic((200.0, 0, 0, 0, 0), -180.0), captions_told_below=0.5
    )
    index = FolderIndex(tmp_path)
    index.update(model)
    recordings = index.read(model.model_id)
    held = {"rain.wav": {"rain"}, "wet.wav": {"heavy_rain", "bell"}, "dog.wav": {"bell"}, "odd.wav": {"thunder"}}
    monkeypatch.setattr(evaluate_labels, "BOUNDS", (0.5, 1.0))
    meant = evaluate_labels.kinds_of_labels(COMPOSER, LABELS)
    found = evaluate_labels.label(model, recordings, held, LABELS, meant)
    some, none = found["bounds"]
    vectors = model.embed_text([label.caption for label in LABELS]) @ recordings.vectors.T
    given = [np.flatnonzero(vectors[:, recordings.rows_of(row)].max(1) > 26.5 / 29.4) for row in range(4)]
    by_name = {path: set(labels.tolist()) for path, labels in zip(recordings.paths, given, strict=True)}
    assert by_name == {"rain.wav": {0}, "wet.wav": {0}, "dog.wav": {1}, "odd.wav": set()}
    # Rain is right twice, once as heavy rain; the dog is a bell; of four sounds two are named, and one recording gets nothing.
    assert some == {
        "bound": 0.5,
        "labels": 3,
        "right": pytest.approx(2 / 3),
        "unknown": 0.25,
        "sounds_named": pytest.approx(2 / 5),
    }
    assert (none["labels"], none["right"], none["unknown"], none["sounds_named"]) == (0, 0, 1, 0)
    assert found["recordings"] == 4
    text = "\n".join(evaluate_labels.tables({"few": found}))
    assert "| 0.5 | 3 | 67 % | 25 % | 40 % |" in text
