"""Measure the labels that a model gives to recordings which training never used, as `diffatr tag` gives them.

    python tools/evaluate_labels.py --composer PATH/make_scenes.py --work DIR [--run RUN] [--split val] [--json]

The recordings are those of `evaluate_small.py` with the same folder and split: single ones, scenes of one to three sounds, and
long recordings of twenty. The labels are the kinds that the model was taught. A label is right where the recording has a sound
that answers it (`small_queries.ALSO`). For each bound of `--min-score`: how many labels are given, the share of them that is
right, the share of recordings that are unknown, and the share of the sounds that some label names.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from compose_small import load_composer
from evaluate_small import answered, average_precision, indexed, parser_of, write_clips
from small_scenes import write_long, write_scenes

from diffatr_cli.core.text import normalise_caption
from diffatr_cli.corpus.describe import Choices, describe
from diffatr_cli.corpus.index import Recordings
from diffatr_cli.data.vocabulary import Label, read_vocabulary
from diffatr_cli.model import Retriever, load_retriever, shipped_model

BOUNDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
TOP = 5  # labels a recording, as `tag` gives them


def kinds_of_labels(composer: ModuleType, labels: list[Label]) -> list[set[str]]:
    """The kinds of sound that answer each label, by the captions that mean it; none of labels that no such kind has."""
    answers, means = answered(composer), defaultdict(set)
    for kind, (_, terse, wordy) in composer.EVENTS.items():
        for clause in (*terse, *wordy):
            means[normalise_caption(clause)] |= answers[kind]
    return [means[normalise_caption(label.caption)] for label in labels]


def label(
    model: Retriever, recordings: Recordings, held: Mapping[str, set[str]], labels: list[Label], meant: list[set[str]]
) -> dict[str, Any]:
    """What labels recordings get: `held` are the kinds in each by its file's name, `meant` those that answer each label.

    The mean average precision is over recordings that some label means.
    """
    choices, number = Choices(model, [each.caption for each in labels]), {each.caption: i for i, each in enumerate(labels)}
    precision, given = [], defaultdict(list)
    for row, path in enumerate(recordings.paths):
        kinds = held[Path(path).name]
        found = describe(model, recordings.vectors[recordings.rows_of(row)], choices, top=len(labels))
        right = np.array([bool(meant[number[hit.caption]] & kinds) for hit in found.hits])
        if right.any():
            precision.append(average_precision(right))
        for bound in BOUNDS:
            hits = [hit for hit in found.hits[:TOP] if hit.score >= bound] if found.certain else []
            names = set().union(*(meant[number[hit.caption]] for hit in hits)) if hits else set()
            given[bound].append((len(hits), int(right[: len(hits)].sum()), len(kinds & names), len(kinds)))
    rows = []
    for bound, counts in given.items():
        labels_given, labels_right, named, sounds = np.sum(counts, 0).tolist()
        share = labels_right / max(1, labels_given)
        unknown = float(np.mean([each[0] == 0 for each in counts]))
        rows.append({"bound": bound, "labels": labels_given, "right": share, "unknown": unknown, "sounds_named": named / sounds})
    return {"recordings": len(recordings), "mean_average_precision": float(np.mean(precision)), "bounds": rows}


def tables(document: Mapping[str, Any]) -> Iterator[str]:
    """The document as Markdown."""
    for name, part in document.items():
        yield f"\n{name.capitalize()}: {part['recordings']}, mean average precision {part['mean_average_precision']:.3f}.\n"
        yield "| `--min-score` | labels given | of them right | recordings unknown | sounds named |\n|---|---|---|---|---|"
        for row in part["bounds"]:
            shares = " | ".join(f"{100 * row[key]:.0f} %" for key in ("right", "unknown", "sounds_named"))
            yield f"| {row['bound']} | {row['labels']} | {shares} |"


def main() -> None:
    """Write the recordings, index them, label them, and print the tables or the document."""
    parser = parser_of(__doc__)
    options = parser.parse_args()
    composer, clips = load_composer(options.composer), options.work / options.split
    write_clips(composer, options.split, clips, composer.kinds(options.split))
    scenes, long = (options.work / f"{options.split}-{what}" for what in ("scenes", "long"))
    parts = {
        "single recordings": (clips, {path.name: {path.stem.rsplit("-", 1)[0]} for path in clips.glob("*.wav")}),
        "scenes": (scenes, {name: set(each.kinds) for name, each in write_scenes(composer, options.split, scenes).items()}),
        "long recordings": (
            long,
            {name: {place.kind for place in places} for name, places in write_long(composer, options.split, long).items()},
        ),
    }
    model = load_retriever(options.run or shipped_model(), "cpu")
    if model.kinds is None:
        parser.error(f"{model.name} has no list of kinds")
    labels = list(read_vocabulary(model.kinds).labels)
    meant = kinds_of_labels(load_composer(options.composer, music=True), labels)
    document = {name: label(model, indexed(folder, model), held, labels, meant) for name, (folder, held) in parts.items()}
    print(json.dumps(document, indent=2) if options.json else "\n".join(tables(document)))


if __name__ == "__main__":
    main()
