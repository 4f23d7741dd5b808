"""Measure a model on recordings that training never used: the composer's test split, searched as a user would.

    python tools/evaluate_small.py --composer PATH/make_scenes.py --work DIR [--run RUN] [--split val] [--gain -40] [--weight 1]

Writes every recording of the split (`--split val` to choose between models) as a file of its own into DIR/SPLIT, long
ambiences in pieces of 10 s, indexes that folder, and asks for each kind of sound by its first clause among all of them mixed.
Kinds that share a clause count as one kind ("a gunshot" is both an urban recording and an effect). Measures:

- precision at 10 and average precision of every kind, and recall at 10 of the kinds of effects;
- words that no training caption has (`compose_small.HELD_OUT`);
- reliability: how often clips that are given a probability do match, of searches that found something, by each kind's clause and
  plain name, with its recordings there and taken away; so too over scenes of those recordings, and over long recordings, of which
  any window may match; beside it the interval that other kinds of sound would leave it in;
- telling queries whose sound is there (each kind by its clause and by its plain name) from queries whose sound is not: AUROC by
  `present` and by the best cosine alone, the share of each that is told to be absent.
  A kind's own recordings are taken away for its absent query; kinds of the composer without a recording in the split are absent
  too; names that no training caption holds are absent by nature, and so are queries in other languages;
- misspelt queries that are respelt as they should be, and negations and other languages that are noticed (`small_queries.py`);
- scenes (`small_scenes.py`) by captions in the composer's terse and wordy clauses and in other words than any training caption's:
  a scene is right where it has all kinds of the caption;
- long recordings by the kinds' clauses: whether the first has the kind, and whether its window overlaps it there;
- instruments and speech in a folder of their own: the same of their kinds;
- captions for a sound: whether "none fits" is told where the list lacks its kind, and where it does not.

Presence and reliability count a recording as right where its kind is what the query's words mean (`small_queries.ALSO`);
precision and recall by the kinds alone.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import soundfile
from compose_small import RATE, load_composer
from small_queries import ABSENT, ALSO, FOREIGN, NEGATED, TYPOS
from small_scenes import Place, Scene, write_long, write_scenes

from diffatr_cli.core.intervals import ClusterBootstrap
from diffatr_cli.core.metrics import auroc, bins_of, reliability
from diffatr_cli.core.text import normalise_caption
from diffatr_cli.core.windows import mean_direction
from diffatr_cli.corpus.describe import describe
from diffatr_cli.corpus.index import FolderIndex, Recordings
from diffatr_cli.corpus.reading import read_queries
from diffatr_cli.corpus.search import Found, embed_texts, search_texts
from diffatr_cli.model import Retriever, load_retriever, shipped_model
from diffatr_cli.training.learnt_captions import names_not_held

PIECE = 10  # seconds
EACH = 2  # recordings of a kind, at most, for which captions are asked
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


def write_clips(composer: ModuleType, split: str, folder: Path, kinds: Iterable[str], gain: float = 0.0) -> None:
    """Every recording of some kinds as `KIND-NUMBER.wav`, `gain` dB louder: as floats, so that nothing else changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        short = [*composer.urban_files(split).get(kind, []), *composer.effect_files(kind, split)]
        waves = [composer.load(str(file)) for file in short]
        for file in composer.EVENTS[kind][0]:
            wave = composer.load(str(composer.DATA / "ambience" / f"{file}.ogg"))
            start, end = (int(share * len(wave)) for share in composer.SPAN[split])
            waves += [wave[at : min(at + PIECE * RATE, end)] for at in range(start, end, PIECE * RATE)]
        for number, wave in enumerate(waves):
            path = folder / f"{kind}-{number:03d}.wav"
            if len(wave) and not path.exists():
                soundfile.write(path, wave * 10 ** (gain / 20), RATE, subtype="FLOAT" if gain else "PCM_16")


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


def answered(composer: ModuleType) -> dict[str, set[str]]:
    """The kinds whose recordings answer each kind's clause, by what the words mean."""
    family = families(composer)
    return {
        kind: {other for other in family if family[other] in {family[each] for each in (kind, *ALSO.get(kind, ()))}}
        for kind in family
    }


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


def evaluate(composer: ModuleType, split: str, model: Retriever, recordings: Recordings) -> dict[str, Any]:
    """All measures over the recordings of a split as one document; those of probabilities where the model has some."""
    family, answers = families(composer), answered(composer)
    kind_of = [Path(path).stem.rsplit("-", 1)[0] for path in recordings.paths]
    kinds = [kind for kind in composer.kinds(split) if kind in kind_of]
    texts = {kind: composer.EVENTS[kind][1][0] for kind in composer.EVENTS}
    count = len(recordings)

    def answer(text: str, among: Recordings = recordings) -> tuple[list[str], np.ndarray, Judged]:
        found = search_texts(model, among, [text], top=count)[0]
        cosine = float((among.vectors @ embed_texts(model, [text])[0]).max())
        hits = [Path(hit.path).stem.rsplit("-", 1)[0] for hit in found.hits]
        return hits, np.array([hit.score for hit in found.hits]), Judged.of(found, cosine)

    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, np.ndarray, np.ndarray]] = []
    judged: dict[str, list[Judged]] = defaultdict(list)
    for kind in kinds:
        rest = without(recordings, [other in answers[kind] for other in kind_of])
        for text, asked in ((texts[kind], "by its clause"), (plain_name(kind), "by its name")):
            for name, among in ((f"there, {asked}", recordings), (f"taken away, {asked}", rest)):
                hits, scores, said = answer(text, among)
                judged[name].append(said)
                if not said.told:
                    shown.append((kind, scores, np.array([hit in answers[kind] for hit in hits])))
                if name == "there, by its clause":
                    row = _ranked(kind, text, hits, family)
                    rows.append(row | {"effects": kind in composer.EFFECTS, "urban": kind in composer.URBAN})
    missing = [kind for kind in composer.EVENTS if not answers[kind] & set(kind_of)]
    judged["taught, without a recording"] = [answer(texts[kind])[2] for kind in missing]
    bank = model.bank
    judged["never taught"] = [answer(name)[2] for name in names_not_held(ABSENT[split], bank.texts if bank else [])]
    judged["another language"] = [answer(text)[2] for text in FOREIGN[split]]

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
        "reliability": _reliability(model, shown),
        "presence": list(_presence(judged)) if model.calibration and model.calibration.presence else [],
        "told_below": model.calibration.told_below if model.calibration else None,
        "readings": _readings(model, split, answer),
    }


def average_precision(right: np.ndarray) -> float:
    """Of a whole ranking, best first: (n,) booleans, some of them right."""
    return float((right * np.cumsum(right) / np.arange(1, len(right) + 1)).sum() / right.sum())


def _ranked(kind: str, text: str, hits: Sequence[str], family: dict[str, int]) -> dict[str, Any]:
    """How well a text finds a kind: `hits` are the kinds of all recordings in their order."""
    right, own = np.array([family[hit] == family[kind] for hit in hits]), np.array([hit == kind for hit in hits])
    return {
        "kind": kind,
        "query": text,
        "clips": int(right.sum()),
        "precision_at_10": float(right[:10].mean()),
        "average_precision": average_precision(right),
        "recall_at_10": float(right[:10].sum() / min(10, right.sum())),
        "own_recall_at_10": float(own[:10].sum() / min(10, own.sum())),
    }


def evaluate_music(composer: ModuleType, split: str, model: Retriever, recordings: Recordings) -> dict[str, Any]:
    """A folder of instruments and speech alone, by each kind's clause: how well it is found, and whether its absence is told."""
    family = families(composer)
    kind_of = [Path(path).stem.rsplit("-", 1)[0] for path in recordings.paths]
    rows, told, shown = [], defaultdict(list), []
    for kind in (each for each in composer.kinds(split) if each in composer.MUSIC):
        text = composer.EVENTS[kind][1][0]
        rest = without(recordings, [other == kind for other in kind_of])
        for name, among in (("there", recordings), ("taken away", rest)):
            found = search_texts(model, among, [text], top=len(among))[0]
            hits = [Path(hit.path).stem.rsplit("-", 1)[0] for hit in found.hits]
            told[name].append(not found.certain)
            if found.certain:
                shown.append((kind, np.array([hit.score for hit in found.hits]), np.array([hit == kind for hit in hits])))
            if name == "there":
                rows.append(_ranked(kind, text, hits, family))
    return {
        "recordings": len(recordings),
        "kinds": len(rows),
        "mean_average_precision": float(np.mean([row["average_precision"] for row in rows])),
        "recall_at_10": float(np.mean([row["recall_at_10"] for row in rows])),
        "told_there": float(np.mean(told["there"])),
        "told_taken_away": float(np.mean(told["taken away"])),
        "rows": rows,
        "reliability": _reliability(model, shown),
    }


def _reliability(model: Retriever, shown: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """The rows of reliability over the probabilities and truths of some kinds, of a model that gives some.

    `off` is how much more came true than was said, with its interval over other kinds: those of one come true together.
    """
    if not (model.calibration and model.calibration.text_to_audio and shown):
        return []
    probabilities, truths = (np.concatenate([each[column] for each in shown]) for column in (1, 2))
    kinds = np.repeat([each[0] for each in shown], [len(each[1]) for each in shown])
    rows, which = [], bins_of(probabilities)
    for each, number in zip(reliability(probabilities, truths), np.unique(which), strict=True):
        inside = which == number
        off = ClusterBootstrap(kinds[inside]).interval(truths[inside] - probabilities[inside])
        rows.append(asdict(each) | {"off": off.to_json()})
    return rows


def evaluate_mixed(
    composer: ModuleType, model: Retriever, recordings: Recordings, contents: dict[str, set[str]], places: dict[str, list[Place]]
) -> dict[str, Any]:
    """Recordings with several kinds of sound each, by the kinds' clauses and names: reliability, presence, and the first hit.

    `contents`: the kinds of each recording; `places`: where they are, if that is known.
    """
    answers, held = answered(composer), [contents[Path(path).name] for path in recordings.paths]
    shown, judged, first, placed = [], defaultdict(list), [], []
    for kind in composer.kinds("test"):
        right = [bool(kinds & answers[kind]) for kinds in held]
        for text in (composer.EVENTS[kind][1][0], plain_name(kind)):
            for name, among in (("there", recordings), ("taken away", without(recordings, right))):
                if (name == "there" and not any(right)) or all(right):
                    continue
                found = search_texts(model, among, [text], top=len(among))[0]
                judged[name].append(not found.certain)
                hits = [Path(hit.path).name for hit in found.hits]
                truth = np.array([bool(contents[hit] & answers[kind]) for hit in hits])
                if found.certain:
                    shown.append((kind, np.array([hit.score for hit in found.hits]), truth))
                if name == "there":
                    best = found.hits[0]
                    first.append(truth[0])
                    overlapping = [p for p in places.get(hits[0], []) if p.start < best.end and best.start < p.end]
                    placed.append(any(p.kind in answers[kind] for p in overlapping))
    document = {
        "recordings": len(held),
        "first_right": float(np.mean(first)),
        "told_there": float(np.mean(judged["there"])),
        "told_taken_away": float(np.mean(judged["taken away"])),
        "reliability": _reliability(model, shown),
    }
    return document | ({"first_right_and_its_place": float(np.mean(placed))} if places else {})


def evaluate_captions(composer: ModuleType, model: Retriever, recordings: Recordings, scenes: dict[str, Scene]) -> dict[str, Any]:
    """Scenes by captions of each wording: R@1, R@10, mean average precision; right is what has all kinds of the caption."""
    answers, names = answered(composer), [Path(path).name for path in recordings.paths]
    document: dict[str, Any] = {}
    for wording in ("terse", "wordy", "reworded"):
        rows = []
        texts = [scenes[name].captions[wording] for name in names]
        for name, found in zip(names, search_texts(model, recordings, texts, top=len(names)), strict=True):
            wanted = scenes[name].kinds
            held = [set(scenes[Path(hit.path).name].kinds) for hit in found.hits]
            right = np.array([all(kinds & answers[kind] for kind in wanted) for kinds in held])
            rows.append((right[0], right[:10].any(), average_precision(right), not found.certain))
        document[wording] = dict(zip(("r1", "r10", "map", "told"), np.mean(rows, 0).tolist(), strict=True))
    return document


def evaluate_described(composer: ModuleType, model: Retriever, recordings: Recordings, size: int = 20) -> dict[str, Any]:
    """Lists of clauses for each recording, one of its kind among them or none: whether "none fits" is told."""
    rng, answers = np.random.default_rng(0), answered(composer)
    kinds = composer.kinds("test")
    judged: dict[str, list[tuple[float, bool]]] = {"with": [], "without": []}
    right, shown = [], []
    asked: dict[str, int] = defaultdict(int)
    for path, content in zip(recordings.paths, recordings.content.tolist(), strict=True):
        kind = Path(path).stem.rsplit("-", 1)[0]
        asked[kind] += 1
        if asked[kind] > EACH:
            continue
        others = [each for each in kinds if kind not in answers[each] and each not in answers[kind]]
        listed = rng.choice(others, size, replace=False).tolist()
        sound = mean_direction(recordings.vectors[recordings.offsets[content] : recordings.offsets[content + 1]])
        for name, chosen in (("with", [kind, *listed[1:]]), ("without", listed)):
            texts = {composer.EVENTS[each][1][0]: each for each in chosen}
            found = describe(model, sound, list(texts), top=size)
            judged[name].append((found.present or 0.0, not found.certain))
            truth = np.array([texts[hit.caption] == kind for hit in found.hits])
            if name == "with":
                right.append(truth[0])
            if found.certain:
                shown.append((kind, np.array([hit.score for hit in found.hits]), truth))
    present = [each for name in ("with", "without") for each, _ in judged[name]]
    return {
        "sounds": len(right),
        "first_right": float(np.mean(right)),
        "told_with": float(np.mean([told for _, told in judged["with"]])),
        "told_without": float(np.mean([told for _, told in judged["without"]])),
        "auroc": auroc(np.array(present), np.arange(len(present)) < len(right)),
        "reliability": _reliability(model, shown),
    }


@dataclass(frozen=True)
class Judged:
    """What a search said of its query: the probability that its sound is there, the best cosine, whether it told it absent."""

    present: float
    cosine: float
    told: bool

    @classmethod
    def of(cls, found: Found, cosine: float) -> Self:
        """What was found, with the best cosine of anything."""
        return cls(found.present or 0.0, cosine, not found.certain)


def plain_name(kind: str) -> str:
    """A kind as people would type it."""
    return kind.removesuffix("_effect").replace("_", " ")


def _synonyms(family: dict[str, int], answer: Any) -> Iterator[dict[str, Any]]:
    for text, kind in SYNONYMS.items():
        hits = answer(text)[0]
        right = [family[hit] == family[kind] for hit in hits]
        yield {"query": text, "kind": kind, "first_rank": right.index(True) + 1, "in_top_10": sum(right[:10])}


def _presence(judged: dict[str, list[Judged]]) -> Iterator[dict[str, Any]]:
    """Of each group of queries how many were told to be absent, and of absent ones the AUROC beside all that are there."""
    there = [each for name, group in judged.items() if name.startswith("there") for each in group]
    absent = {name: group for name, group in judged.items() if not name.startswith("there")}
    absent["all that are absent"] = [each for group in absent.values() for each in group]
    for name, group in (judged | {"all that are there": there} | absent).items():
        row = {"queries": name, "count": len(group), "told": float(np.mean([each.told for each in group]))}
        if name in absent:
            labels = np.array([True] * len(there) + [False] * len(group))
            for key in ("present", "cosine"):
                row[f"auroc_{key}"] = auroc(np.array([getattr(each, key) for each in [*there, *group]]), labels)
        yield row


def _readings(model: Retriever, split: str, answer: Any) -> dict[str, Any]:
    """Shares of misspelt queries that are respelt right or found all the same, of negations and languages that are noticed."""
    respelt, found, shown = [], [], {}
    for text, right in TYPOS[split].items():
        suggestion, told = read_queries(model, [text])[0].respelt, answer(text)[2].told
        respelt.append(suggestion == normalise_caption(right))
        found.append(suggestion == normalise_caption(right) or not told)
        if not respelt[-1]:
            shown[text] = suggestion
    negated = [each.negation for each in read_queries(model, list(NEGATED[split]))]
    foreign = [each.foreign for each in read_queries(model, FOREIGN[split])]
    return {
        "misspelt, respelt as meant": float(np.mean(respelt)),
        "misspelt, respelt as meant or taken for present": float(np.mean(found)),
        "negation noticed, with what is not wanted": float(
            np.mean(
                [
                    each is not None and each.unwanted == NEGATED[split][text]
                    for text, each in zip(NEGATED[split], negated, strict=True)
                ]
            )
        ),
        "another language noticed as such": float(np.mean(foreign)),
        "not respelt as meant": shown,
        "negation missed": [text for text, each in zip(NEGATED[split], negated, strict=True) if each is None],
        "language missed": [text for text, each in zip(FOREIGN[split], foreign, strict=True) if not each],
    }


def tables(document: dict[str, Any]) -> Iterator[str]:
    """The document as Markdown."""
    yield f"{document['files']} files, {document['kinds']} kinds with a test recording.\n"
    yield "| measure | value |\n|---|---|"
    for key, value in document.items():
        if isinstance(value, float) and key != "told_below":
            yield f"| {key.replace('_', ' ')} | {value:.3f} |"
    rows = document["rows"]
    yield from _kinds_table("Urban kinds", [row for row in rows if row["urban"]])
    yield from _kinds_table("Kinds of effects", [row for row in rows if row["effects"]])
    yield from _kinds_table("Instruments and speech, in a folder of their own", document["instruments and speech"]["rows"])
    yield "\n| query | kind | first at rank | of the first ten |\n|---|---|---|---|"
    for row in document["synonyms"]:
        yield f"| {row['query']} | {row['kind']} | {row['first_rank']} | {row['in_top_10']} |"
    yield from _reliability_table("Recordings", document["reliability"])
    if document["presence"]:
        yield f"\nPresence below {document['told_below']:.2f} is told as absence.\n"
        yield "| queries | number | told to be absent | AUROC | of the cosine alone |\n|---|---|---|---|---|"
    for row in document["presence"]:
        aurocs = " | ".join(f"{row[key]:.3f}" if key in row else "" for key in ("auroc_present", "auroc_cosine"))
        yield f"| {row['queries']} | {row['count']} | {100 * row['told']:.1f} % | {aurocs} |"
    yield "\n| queries | share |\n|---|---|"
    for name, share in document["readings"].items():
        if isinstance(share, float):
            yield f"| {name} | {100 * share:.0f} % |"

    for name in ("scenes", "long recordings", "instruments and speech", "captions for a sound"):
        part = document[name]
        yield f"\n{name.capitalize()}:\n\n| measure | value |\n|---|---|"
        for key, value in part.items():
            if isinstance(value, float | int):
                yield f"| {key.replace('_', ' ')} | {value:.3f} |"
        yield from _reliability_table(name.capitalize(), part["reliability"])
    yield "\n| captions of scenes | R@1 | R@10 | mAP | told to be absent |\n|---|---|---|---|---|"
    for wording, row in document["captions of scenes"].items():
        yield f"| {wording} | {row['r1']:.3f} | {row['r10']:.3f} | {row['map']:.3f} | {row['told']:.3f} |"


def _kinds_table(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"\n{name}:\n\n| kind | query | clips | P@10 | AP | recall@10 | of its own files |\n|---|---|---|---|---|---|---|"
    for row in rows:
        figures = " | ".join(
            f"{row[key]:.2f}" for key in ("precision_at_10", "average_precision", "recall_at_10", "own_recall_at_10")
        )
        yield f"| {row['kind']} | {row['query']} | {row['clips']} | {figures} |"


def _reliability_table(name: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"\n{name}:\n\n| probability | candidates | mean probability | matched | off by, points |\n|---|---|---|---|---|"
    for row in rows:
        mean, low, high = (100 * row["off"][key] for key in ("mean", "low", "high"))
        yield (
            f"| {row['low']:.1f}-{row['high']:.1f} | {row['count']} | {100 * row['predicted']:.1f} % | "
            f"{100 * row['observed']:.1f} % | {mean:+.1f} [{low:+.1f}, {high:+.1f}] |"
        )


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of whatever measures a model on the composer's recordings."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder for the clips and their index")
    parser.add_argument("--run", type=Path, help="a run's folder; the model that ships if not given")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which recordings, by default those of test")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def indexed(clips: Path, model: Retriever) -> Recordings:
    """The recordings of a folder, whose index is made or brought up to date."""
    folder = FolderIndex(clips, clips / ".diffatr")
    folder.update(model)
    return folder.read(model.model_id)


def main() -> None:
    """Write the clips, index them, and print the tables or the document."""
    parser = parser_of(__doc__)
    parser.add_argument("--gain", type=float, default=0.0, help="dB by which to make all recordings louder, or quieter")
    parser.add_argument("--weight", type=float, help="of x0_hat beside the cosine, in the place of the model's own")
    options = parser.parse_args()
    composer, name = load_composer(options.composer), options.split + (f"{options.gain:+g}dB" if options.gain else "")
    clips = options.work / name
    write_clips(composer, options.split, clips, composer.kinds(options.split), options.gain)
    model = load_retriever(options.run or shipped_model(), "cpu")
    if options.weight is not None:
        model.reweigh(options.weight)
    document = evaluate(composer, options.split, model, indexed(clips, model))
    scenes, long = (options.work / f"{options.split}-{what}" for what in ("scenes", "long"))
    of_scenes, places = write_scenes(composer, options.split, scenes), write_long(composer, options.split, long)
    kinds = {name: set(scene.kinds) for name, scene in of_scenes.items()}
    document["scenes"] = evaluate_mixed(composer, model, indexed(scenes, model), kinds, {})
    kinds = {name: {place.kind for place in some} for name, some in places.items()}
    document["long recordings"] = evaluate_mixed(composer, model, indexed(long, model), kinds, places)
    document["captions of scenes"] = evaluate_captions(composer, model, indexed(scenes, model), of_scenes)
    players, music = load_composer(options.composer, music=True), options.work / f"{name}-music"
    write_clips(players, options.split, music, players.MUSIC, options.gain)
    document["instruments and speech"] = evaluate_music(players, options.split, model, indexed(music, model))
    document["captions for a sound"] = evaluate_described(composer, model, indexed(clips, model))
    print(json.dumps(document, indent=2) if options.json else "\n".join(tables(document)))


if __name__ == "__main__":
    main()
