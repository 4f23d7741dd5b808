"""Choose how much a name counts beside the sound, on recordings whose real names are withheld, true or misleading.

    python tools/choose_names.py --composer PATH/make_scenes.py --work DIR [--run RUN] [--split test]

The recordings are those of `evaluate_small.py`. Effects and ambiences have the names that people gave them, such as
`openclonk-DoorOpen2` and `m-animals-cows`; city recordings have none, and are `untitled` throughout. Each kind of sound that has
one with a name is asked for by its first clause and by its plain name, under four sets of names:

- true: as people named them;
- withheld: `untitled_0007`, all of them;
- misleading: each has the name of a recording of another kind, drawn at random;
- mixed: of the named ones half true, three eighths withheld, one eighth misleading.

Drawn sets of names are drawn `DRAWS` times. Measured for each query: the share of the right recordings among the first ten, of as
many as could be there (recall at 10), and average precision. Ways are the sound alone, the name alone, both with several weights,
and reciprocal ranks (Cormack et al. 2009, k = 60). Intervals are 95 %, of a bootstrap over kinds, of the difference to the sound.

Without --split the weights are compared on validation; `--split test` shows the chosen one, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
from compose_small import RATE, load_composer
from evaluate_small import PIECE, answered, plain_name, write_clips

from diffatr_cli.core.intervals import ClusterBootstrap
from diffatr_cli.corpus import selection
from diffatr_cli.corpus.asking import select
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.notes import UNKNOWN, Notes
from diffatr_cli.corpus.reading import Reading, read_queries
from diffatr_cli.corpus.search import search
from diffatr_cli.model import Retriever, load_retriever, shipped_model

WEIGHTS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
DRAWS = 5
K = 60  # of reciprocal ranks
CONDITIONS = ("true", "withheld", "misleading", "mixed")


class Query(NamedTuple):
    """A text, and the kind that it asks for."""

    text: str
    kind: str


def given_names(composer: ModuleType, split: str) -> dict[str, str]:
    """The name that people gave each clip of `write_clips`, by its file name there; none of the city's."""
    names = {}
    for kind in composer.kinds(split):
        own: list[str | None] = [None] * len(composer.urban_files(split).get(kind, []))
        own += [file.stem for file in composer.effect_files(kind, split)]
        for file in composer.EVENTS[kind][0]:
            wave = composer.load(str(composer.DATA / "ambience" / f"{file}.ogg"))
            start, end = (int(share * len(wave)) for share in composer.SPAN[split])
            own += [f"{file}-{i}" for i, _ in enumerate(range(start, end, PIECE * RATE), 1)]
        names |= {f"{kind}-{number:03d}.wav": name for number, name in enumerate(own) if name}
    return names


def named(recordings: Recordings, given: dict[str, str], condition: str, rng: np.random.Generator) -> Recordings:
    """The recordings under other names; their order stays."""
    paths = []
    kind_of = [Path(path).stem.rsplit("-", 1)[0] for path in recordings.paths]
    have = [i for i, path in enumerate(recordings.paths) if Path(path).name in given]
    for i, path in enumerate(recordings.paths):
        name = f"untitled_{i:04d}"
        if Path(path).name in given:
            lot = {"true": 0.0, "withheld": 0.6, "misleading": 0.9}.get(condition, rng.uniform())
            if lot < 0.5:
                name = given[Path(path).name]
            elif lot >= 0.875:
                others = [other for other in have if kind_of[other] != kind_of[i]]
                name = given[Path(recordings.paths[rng.choice(others)]).name]
        paths.append(f"{name}__{i:04d}.wav")  # apart, since a name may be drawn twice
    return replace(recordings, paths=paths, notes=Notes.of(paths, [UNKNOWN] * len(paths)))


class Texts(NamedTuple):
    """The queries as the model has them."""

    texts: list[str]
    vectors: np.ndarray
    readings: list[Reading]

    @classmethod
    def of(cls, model: Retriever, texts: list[str]) -> Self:
        """Texts, embedded and read once for all sets of names."""
        vectors, pooled = model.embed_and_pool_text(texts)
        return cls(texts, vectors, read_queries(model, texts, pooled))


def rankings(model: Retriever, recordings: Recordings, asked: Texts, way: str) -> list[np.ndarray]:
    """For each text the numbers of the recordings, best first, as far as the way ranks them."""
    if way == "reciprocal ranks":
        return list(_reciprocal(rankings(model, recordings, asked, "sound"), recordings, asked.texts))
    by, _, weight = way.partition(" ")
    before = selection.WEIGHT
    try:
        selection.WEIGHT = float(weight or before)
        selections = [select(recordings, text, (), by) for text in asked.texts]  # type: ignore[arg-type]
        how: dict[str, Any] = {"readings": asked.readings, "selections": selections, "top": len(recordings)}
        found = search(model, recordings, asked.vectors, **how)
    finally:
        selection.WEIGHT = before
    return [np.array([recordings.number_of[hit.path] for hit in each.hits], int) for each in found]


def _reciprocal(by_sound: Sequence[np.ndarray], recordings: Recordings, texts: Sequence[str]) -> Iterator[np.ndarray]:
    assert recordings.notes is not None
    for order, text in zip(by_sound, texts, strict=True):
        scores, names = np.zeros(len(order)), recordings.notes.names.scores(text)
        scores[order] += 1 / (K + 1 + np.arange(len(order)))
        called = np.argsort(-names, kind="stable")[: int((names > 0).sum())]
        ranks = 1 + np.searchsorted(-names[called], -names[called])  # those called alike share a rank
        scores[called] += 1 / (K + ranks)
        yield order[np.argsort(-scores[order], kind="stable")]


def measures(ranked: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Recall at 10 and average precision of a ranking, of the recordings that are right, (N,) bool."""
    hits = right[ranked]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(hits[:10].sum() / min(10, right.sum())), float((hits * precision).sum() / right.sum())


def main() -> None:
    """Write the clips, index them, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder for the clips and their index")
    parser.add_argument("--run", type=Path, help="a run's folder; the model that ships if not given")
    parser.add_argument("--split", choices=("test", "val"), default="val", help="which recordings")
    options = parser.parse_args()
    composer, model = load_composer(options.composer), load_retriever(options.run or shipped_model(), "cpu")
    clips = options.work / options.split
    write_clips(composer, options.split, clips, composer.kinds(options.split))
    folder = FolderIndex(clips, clips / ".diffatr")
    folder.update(model)
    recordings, given, answers = folder.read(model.model_id), given_names(composer, options.split), answered(composer)
    kind_of = [Path(path).stem.rsplit("-", 1)[0] for path in recordings.paths]
    kinds = sorted({kind_of[i] for i, path in enumerate(recordings.paths) if Path(path).name in given})
    queries = [Query(text, kind) for kind in kinds for text in (composer.EVENTS[kind][1][0], plain_name(kind))]
    right = [np.array([kind in answers[query.kind] for kind in kind_of]) for query in queries]
    ways = ["sound", "name", "reciprocal ranks"]
    ways += [f"both {weight:g}" for weight in (WEIGHTS if options.split == "val" else (selection.WEIGHT,))]
    print(f"{len(recordings)} recordings, {len(given)} with a name that people gave them; {len(queries)} queries.")
    clusters = ClusterBootstrap([kinds.index(query.kind) for query in queries])
    asked = Texts.of(model, [query.text for query in queries])
    for number, measure in enumerate(("recall at 10", "average precision")):
        print(f"\n| {measure} | " + " | ".join(f"{each} | to sound" for each in CONDITIONS) + " |")
        print("|---|" + "---:|---|" * len(CONDITIONS))
        for way in ways:
            cells = []
            for condition in CONDITIONS:
                values = {
                    each: measured(model, recordings, given, condition, asked, right, each)[:, :, number]
                    for each in (way, "sound")
                }
                told = clusters.difference(values["sound"], values[way])
                cells.append(f"{values[way].mean():.3f} | {told.mean:+.3f} ({told.low:+.3f} to {told.high:+.3f})")
            print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


_MEASURED: dict[tuple[str, str], np.ndarray] = {}


def measured(
    model: Retriever,
    recordings: Recordings,
    given: dict[str, str],
    condition: str,
    asked: Texts,
    right: Sequence[np.ndarray],
    way: str,
) -> np.ndarray:
    """The measures of a way under a set of names: (draws, queries, 2)."""
    if (condition, way) not in _MEASURED:
        rows = []
        for draw in range(DRAWS if condition in ("misleading", "mixed") else 1):
            others = named(recordings, given, condition, np.random.default_rng(draw))
            ranked = rankings(model, others, asked, way)
            rows.append([measures(order, truth) for order, truth in zip(ranked, right, strict=True)])
        _MEASURED[condition, way] = np.array(rows)
    return _MEASURED[condition, way]


if __name__ == "__main__":
    main()
