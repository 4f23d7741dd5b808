"""Measure a model on recordings that training never used: the composer's test split, searched as a user would.

    python tools/evaluate_small.py --composer PATH/make_scenes.py --work DIR [--run RUN] [--split val] [--cosine] [--json]

Writes every recording of the split (`--split val` to choose between models) as a file of its own into DIR/SPLIT, long
ambiences in pieces of 10 s, indexes that folder, and asks for each kind of sound by its first clause among all of them mixed.
Kinds that share a clause count as one kind ("a gunshot" is both an urban recording and an effect). Measures:

- precision at 10 and average precision of every kind, and recall at 10 of the kinds of effects;
- words that no training caption has (`compose_small.HELD_OUT`);
- reliability: how often clips that are given a probability do match;
- AUROC of telling queries whose sound is there from queries whose sound is not, by `present` and by the best cosine alone.
  A kind's own recordings are taken away for its absent query; kinds without any test recording are absent by nature.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
from compose_small import RATE, load_composer

from diffatr_cli.core.metrics import auroc, reliability
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.search import embed_texts, search
from diffatr_cli.model import Retriever, load_retriever, shipped_model

PIECE = 10  # seconds
SYNONYMS = {
    "a puppy": "dog_bark",
    "puppy": "dog_bark",
    "an ambulance": "siren",
    "ambulance": "siren",
    "a thunderstorm": "thunder",
    "thunderstorm": "thunder",
    "someone at a computer": "keyboard",
    "computer keyboard": "keyboard",
}


def write_clips(composer: ModuleType, split: str, folder: Path) -> None:
    """Every recording of a split as `KIND-NUMBER.wav`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in composer.kinds(split):
        short = [*composer.urban_files(split).get(kind, []), *composer.effect_files(kind, split)]
        waves = [composer.load(str(file)) for file in short]
        for file in composer.EVENTS[kind][0]:
            wave = composer.load(str(composer.DATA / "ambience" / f"{file}.ogg"))
            start, end = (int(share * len(wave)) for share in composer.SPAN[split])
            waves += [wave[at : min(at + PIECE * RATE, end)] for at in range(start, end, PIECE * RATE)]
        for number, wave in enumerate(waves):
            path = folder / f"{kind}-{number:03d}.wav"
            if len(wave) and not path.exists():
                soundfile.write(path, wave, RATE, subtype="PCM_16")


def families(composer: ModuleType) -> dict[str, int]:
    """A number for each kind, equal for kinds that share a clause."""
    clauses = {kind: set(terse) | set(wordy) for kind, (_, terse, wordy) in composer.EVENTS.items()}
    family = {kind: number for number, kind in enumerate(clauses)}
    for a in clauses:
        for b in clauses:
            if clauses[a] & clauses[b] and family[a] != family[b]:
                old, new = family[a], family[b]
                family = {kind: new if number == old else number for kind, number in family.items()}
    return family


def without(recordings: Recordings, left_out: Sequence[bool]) -> Recordings:
    """The recordings that are not left out."""
    kept = [i for i, out in enumerate(left_out) if not out]
    number = {content: i for i, content in enumerate(dict.fromkeys(recordings.content[kept].tolist()))}
    rows = [np.arange(recordings.offsets[content], recordings.offsets[content + 1]) for content in number]
    picked = np.concatenate(rows)
    return Recordings(
        [recordings.paths[i] for i in kept],
        np.array([number[content] for content in recordings.content[kept].tolist()]),
        np.cumsum([0, *map(len, rows)]),
        recordings.spans[picked],
        recordings.vectors[picked],
    )


def evaluate(composer: ModuleType, split: str, model: Retriever, recordings: Recordings, refine: bool = True) -> dict[str, Any]:
    """All measures over the recordings of a split as one document; without `refine`, of ranking by the cosine alone."""
    family = families(composer)
    kind_of = [Path(path).stem.rsplit("-", 1)[0] for path in recordings.paths]
    kinds = [kind for kind in composer.kinds(split) if kind in kind_of]
    texts = {kind: composer.EVENTS[kind][1][0] for kind in composer.EVENTS}
    count = len(recordings)

    def answer(kind_or_text: str, among: Recordings = recordings) -> tuple[list[str], np.ndarray, float, float]:
        text = texts.get(kind_or_text, kind_or_text)
        vector = embed_texts(model, [text])
        found = search(model, among, vector, refine=refine, top=count)[0]
        cosine = float((among.vectors @ vector[0]).max())
        hits = [Path(hit.path).stem.rsplit("-", 1)[0] for hit in found.hits]
        return hits, np.array([hit.score for hit in found.hits]), found.present or 0.0, cosine

    rows: list[dict[str, Any]] = []
    probabilities, truths, there = [], [], []
    for kind in kinds:
        hits, scores, present, cosine = answer(kind)
        right = np.array([family[hit] == family[kind] for hit in hits])
        own = np.array([hit == kind for hit in hits])
        rows.append(
            {
                "kind": kind,
                "query": texts[kind],
                "clips": int(right.sum()),
                "precision_at_10": float(right[:10].mean()),
                "average_precision": float((right * np.cumsum(right) / np.arange(1, count + 1)).sum() / right.sum()),
                "recall_at_10": float(right[:10].sum() / min(10, right.sum())),
                "own_recall_at_10": float(own[:10].sum() / min(10, own.sum())),
                "effects": kind in composer.EFFECTS,
                "urban": kind in composer.URBAN,
            }
        )
        probabilities.append(scores)
        truths.append(right)
        there.append((True, present, cosine))
        rest = without(recordings, [family[other] == family[kind] for other in kind_of])
        there.append((False, *answer(kind, rest)[2:]))
    natural = [kind for kind in composer.EVENTS if family[kind] not in {family[other] for other in kind_of}]
    by_nature = [(False, *answer(kind)[2:]) for kind in natural]

    def mean(key: str, flag: str | None = None) -> float:
        return float(np.mean([row[key] for row in rows if flag is None or row[flag]]))

    return {
        "files": count,
        "kinds": len(kinds),
        "urban_precision_at_10": mean("precision_at_10", "urban"),
        "urban_mean_average_precision": mean("average_precision", "urban"),
        "effects_recall_at_10": mean("recall_at_10", "effects"),
        "effects_own_recall_at_10": mean("own_recall_at_10", "effects"),
        "effects_kinds": sum(row["effects"] for row in rows),
        "all_precision_at_10": mean("precision_at_10"),
        "all_mean_average_precision": mean("average_precision"),
        "rows": rows,
        "synonyms": list(_synonyms(family, answer)),
        "reliability": [asdict(each) for each in reliability(np.concatenate(probabilities), np.concatenate(truths))],
        "presence": {
            "taken away": _presence(there),
            "taken away or absent by nature": _presence(there + by_nature),
            "absent_by_nature": len(natural),
        },
    }


def _synonyms(family: dict[str, int], answer: Any) -> Iterator[dict[str, Any]]:
    for text, kind in SYNONYMS.items():
        hits = answer(text)[0]
        right = [family[hit] == family[kind] for hit in hits]
        yield {"query": text, "kind": kind, "first_rank": right.index(True) + 1, "in_top_10": sum(right[:10])}


def _presence(examples: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    labels = np.array([there for there, _, _ in examples])
    present, cosine = (np.array([example[i] for example in examples]) for i in (1, 2))
    said = present >= 0.5
    return {
        "auroc": auroc(present, labels),
        "auroc_cosine_alone": auroc(cosine, labels),
        "there_and_said_so": float(said[labels].mean()),
        "absent_and_said_so": float((~said[~labels]).mean()),
    }


def tables(document: dict[str, Any]) -> Iterator[str]:
    """The document as Markdown."""
    yield f"{document['files']} files, {document['kinds']} kinds with a test recording.\n"
    yield "| measure | value |\n|---|---|"
    for key, value in document.items():
        if isinstance(value, float):
            yield f"| {key.replace('_', ' ')} | {value:.3f} |"
    for name, wanted in (("Urban kinds", "urban"), ("Kinds of effects", "effects")):
        yield f"\n{name}:\n\n| kind | query | clips | P@10 | AP | recall@10 | of its own files |\n|---|---|---|---|---|---|---|"
        for row in document["rows"]:
            if row[wanted]:
                figures = " | ".join(
                    f"{row[key]:.2f}" for key in ("precision_at_10", "average_precision", "recall_at_10", "own_recall_at_10")
                )
                yield f"| {row['kind']} | {row['query']} | {row['clips']} | {figures} |"
    yield "\n| query | kind | first at rank | of the first ten |\n|---|---|---|---|"
    for row in document["synonyms"]:
        yield f"| {row['query']} | {row['kind']} | {row['first_rank']} | {row['in_top_10']} |"
    yield "\n| probability | clips | mean probability | matched |\n|---|---|---|---|"
    for row in document["reliability"]:
        yield (
            f"| {row['low']:.1f}-{row['high']:.1f} | {row['count']} | {100 * row['predicted']:.1f} % | "
            f"{100 * row['observed']:.1f} % |"
        )
    yield "\n| absent queries | AUROC | cosine alone | there, and said so | absent, and said so |\n|---|---|---|---|---|"
    for name in ("taken away", "taken away or absent by nature"):
        row = document["presence"][name]
        yield f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |"


def main() -> None:
    """Write the clips, index them, and print the tables or the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder for the clips and their index")
    parser.add_argument("--run", type=Path, help="a run's folder; the model that ships if not given")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which recordings, by default those of test")
    parser.add_argument("--cosine", action="store_true", help="rank by the cosine alone, without diffusion")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    composer, clips = load_composer(options.composer), options.work / options.split
    write_clips(composer, options.split, clips)
    model = load_retriever(options.run or shipped_model(), "cpu")
    folder = FolderIndex(clips, clips / ".diffatr")
    folder.update(model)
    document = evaluate(composer, options.split, model, folder.read(model.model_id), not options.cosine)
    print(json.dumps(document, indent=2) if options.json else "\n".join(tables(document)))


if __name__ == "__main__":
    main()
