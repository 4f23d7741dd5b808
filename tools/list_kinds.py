"""List the kinds of sound that `diffatr-small` learnt from, as the labels that `diffatr tag` gives where no others are named.

    python tools/list_kinds.py --composer PATH/make_scenes.py --out diffatr_cli/models/diffatr-small/kinds.csv

A line for each kind: `label`, its name, and `caption`, the clause that the model is asked by, which was the first of those that
it learnt it by. Kinds that share their first clause, and those of `SAME`, are one.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from compose_small import load_composer, without_held_out

from diffatr_cli.data.sounds import KINDS
from diffatr_cli.files import replacing

SAME = (
    ("bees", "bees_buzzing"),
    ("birds", "birds_singing", "birds_chirping"),
    ("church_bells", "church_bell"),
    ("cow_mooing", "cows"),
    ("crow_cawing", "crows"),
    ("crowd", "crowd_chatter"),
    ("drums",),
    ("footsteps_on_gravel", "footsteps_gravel"),
    ("footsteps_on_snow", "footsteps_snow"),
    ("frog_croaking", "frogs"),
    ("gunshot", "gun_shot"),
    ("hammering",),
    ("helicopter",),
    ("jackhammer", "jackhammer_effect"),
    ("knocking_on_door", "knocking"),
    ("ocean_waves", "waves"),
    ("explosion",),
    ("rain", "light_rain"),
    ("river", "stream"),
    ("seagulls", "seagulls_calling"),
    ("sheep_bleating", "sheep"),
    ("thunder", "thunder_effect"),
    ("train", "train_passing"),
    ("typing_on_keyboard", "keyboard", "typing"),
    ("vacuum_cleaner",),
    ("applause",),
    ("guitar", "acoustic_guitar"),
    ("church", "choir_singing"),
    ("violin", "violin_solo"),
    ("cello", "cello_solo"),
    ("trumpet", "trumpet_solo"),
    ("piano", "grand_piano"),
)
"""Kinds by other names of the same sound; the first one names them. One alone is there twice: recorded, and made by a program."""
NAMES = {
    "bees": "bees buzzing",
    "bells": "chimes",
    "big_cat_growling": "tiger growling",
    "big_cat_roaring": "lion roaring",
    "birds": "birds singing",
    "boiling": "water boiling",
    "car_passing": "car passing by",
    "church": "choir singing",
    "construction": "construction work",
    "crowd": "crowd talking",
    "drilling": "drill",
    "fire_crackling": "fire crackling",
    "fly_buzzing": "fly buzzing",
    "footsteps_leaves": "footsteps on leaves",
    "fan": "ceiling fan",
    "hammering": "hammering",
    "laughing": "person laughing",
    "morse": "morse code",
    "projector": "slide projector",
    "radio": "radio being tuned",
    "rowing": "oars splashing",
    "scraping_stone": "stone scraping",
    "street_music": "music",
    "subway": "subway station",
    "underwater": "underwater rumble",
    "vinyl": "vinyl crackle",
    "wipers": "windshield wipers",
}
"""Of the kinds whose name says too little."""


def kinds(composer: ModuleType) -> list[tuple[str, str]]:
    """The label and the caption of each kind, by the alphabet."""
    clauses = {kind: composer.EVENTS[kind][1][0] for kind in composer.kinds("train")}
    for kind, made in KINDS.items():
        clauses.setdefault(kind, next(without_held_out(made.captions)))
    first = {kind: same[0] for same in SAME for kind in same}
    groups: dict[str, list[str]] = defaultdict(list)
    for kind, clause in clauses.items():
        groups[clauses[first[kind]] if kind in first else clause].append(kind)
    found = []
    for clause, alike in groups.items():
        named = next((first[kind] for kind in alike if kind in first), None)
        # Of several names the longer one says more ("cat purring", of "cat" and "cat_purring").
        kind = named or max(alike, key=lambda each: (not each.endswith("_effect"), len(each)))
        found.append((NAMES.get(kind, kind.removesuffix("_effect").replace("_", " ")), clause))
    return sorted(found)


def main() -> None:
    """Write the list and say how long it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", type=Path, required=True, help="the file that knows the recordings")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    found = kinds(load_composer(options.composer, music=True))
    with replacing(options.out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("label", "caption"), *found])
    print(f"{len(found)} kinds -> {options.out}")


if __name__ == "__main__":
    main()
