"""What each of the paper's tables needs: runs, shared wherever two rows can stand on one, and the rows that they fill. Pure.

A run is named after its recipe, so that what `pretrain` and `train-diffusion` made before is found again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..recipe import differing_fields, load_recipe
from ..recipe_schema import Recipe
from ..types import System

World = Literal["paper", "scenes"]
"""The paper's data sets and encoders, or composed stand-ins for both."""
TABLES = ("1", "2", "3", "4", "5", "6", "7")
ABLATIONS = ("5", "6", "7")
STUDIES = ("levers", "frames")
"""Tables that the paper has not: what departing from it gains. Each is four tables, in domain and out of it."""
SOURCES = ("audiocaps", "clotho")
ENCODERS = ("resnet38", "cnn14")
CHAINS = (10, 50, 100, 200)
BATCHES = (16, 24, 32)
QUICK = 4
"""What `--quick` divides epochs by."""

_STAND_INS = {"resnet38": (), "cnn14": ("audio.channels=[16, 32, 64, 128]",)}
"""In the place of the paper's encoders the scenes' recipes have the small one, and, for the second, one of half its width."""

_BOTH = "evaluation.domains={both}"
"""Both data sets' validation splits choose. Whoever has captions there may do so; it is no test out of domain any more."""
_SCALED = "diffusion.x0_scale=14"  # the size of the attention's logits, 1 / tau
_LEVERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Diff", "diff", ()),
    ("the denoiser without diffusion", "flat", ("diffusion.objective=discriminative",)),
    ("Diff, x_0 times 14", "scaled", (_SCALED,)),
    ("Diff, high levels", "high", ("diffusion.levels=high",)),
    ("Diff, x_0 times 14, high levels", "scaled-high", (_SCALED, "diffusion.levels=high")),
    ("Diff, x_0 times 14, rollout", "scaled-rollout", (_SCALED, "diffusion.rollout=0.5")),
    ("Diff, self-conditioning", "told", ("diffusion.self_conditioning=true",)),
    (
        "Diff, all four",
        "four",
        (_SCALED, "diffusion.levels=high", "diffusion.rollout=0.5", "diffusion.self_conditioning=true"),
    ),
    ("Diff, nearest negatives", "nearest", ("diffusion.candidates=64", "diffusion.negatives=nearest")),
    ("Diff, memory bank", "bank", ("diffusion.candidates=512", "diffusion.negatives=bank")),
    ("Diff, a prior by training queries", "prior", ("evaluation.bank=8192",)),
    (
        "Diff, nearest negatives and a prior",
        "nearest-prior",
        ("diffusion.candidates=64", "diffusion.negatives=nearest", "evaluation.bank=8192"),
    ),
    ("Diff, embeddings moved by half their length", "jitter", ("diffusion.jitter=0.5",)),
    ("Diff, x_0 times 14, feedback over neighbours", "feedback", (_SCALED, "diffusion.feedback=neighbours")),
    ("Diff, held-out folds", "folds", ("diffusion.folds=2",)),
    (
        "Diff, x_0 times 14, feedback over neighbours, held-out folds",
        "feedback-folds",
        (_SCALED, "diffusion.feedback=neighbours", "diffusion.folds=2"),
    ),
)
"""What each row of the study of levers is called, its run's suffix, and the fields that it changes: phase two alone."""
_ONE_PHASE = ("pretrain.head_steps=0", "diffusion.folds=0", "evaluation.bank=0")
"""What trains everything in one phase has none of these."""
_JOINT = ("model.strategy=joint", *_ONE_PHASE)
"""The fields of that study's last row, whose encoders are trained together with the denoisers."""
_NO_PRIOR = ("evaluation.bank=0",)
"""The recipes with frames have a prior; rows that show what frames do have none."""
_FRAMES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Diff by frames", "frames", _NO_PRIOR),
    ("by frames without diffusion", "frames-flat", ("diffusion.objective=discriminative", *_NO_PRIOR)),
    ("Diff by frames, x_0 times 14, high levels", "frames-scaled-high", (_SCALED, "diffusion.levels=high", *_NO_PRIOR)),
    ("Diff by frames and a prior by training queries", "frames-prior", ()),
    ("Diff by frames and a prior, chosen on both data sets", "frames-prior-both", (_BOTH,)),
)


@dataclass(frozen=True)
class Training:
    """One training, for every seed.

    Attributes:
        name: the folder below runs.
        recipe: by name.
        overrides: `section.field=value` beyond the recipe's file.
        encoders: the name of the run whose phase one this one's phase two stands on; None: its own.
        diffusion: whether it has a phase two.
        denoisers: the name of the run whose denoisers it takes as they are, to choose their weights anew; None: its own.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    encoders: str | None = None
    diffusion: bool = True
    denoisers: str | None = None

    def resolved(self) -> Recipe:
        """The recipe as it is trained. Raises RecipeError for one that cannot be read."""
        return load_recipe(self.recipe, self.overrides)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as the paper has it, or what the row adds to the paper's.
        training: whose model fills it.
        system: what of it.
        paper: the table and row of `paper_results.yaml`; None for a row that the paper has not.
        departs: fields in which the training departs from the recipe of the paper's row.
    """

    label: str
    training: Training
    system: System
    paper: tuple[str, str | int] | None = None
    departs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table: `number` and `title` as the paper has them, learnt from data set `source` and tested on `target`."""

    number: str
    title: str
    source: str
    target: str
    rows: tuple[Row, ...]

    @property
    def trainings(self) -> tuple[Training, ...]:
        """What it needs, each once, encoders before those who stand on them."""
        return needed(row.training for row in self.rows)


def needed(trainings: Iterable[Training]) -> tuple[Training, ...]:
    """Trainings, each once; those with encoders and denoisers of their own first, since others may stand on them."""
    return tuple(sorted(dict.fromkeys(trainings), key=lambda each: (each.encoders is not None, each.denoisers is not None)))


def plan(
    numbers: Sequence[str],
    world: World = "paper",
    *,
    quick: bool = False,
    overrides: Sequence[str] = (),
    source: str | None = None,
) -> tuple[Table, ...]:
    """The tables of these numbers, each in `TABLES`, and of these studies, each in `STUDIES`.

    Args:
        quick: a fraction of the epochs, in runs of their own names.
        overrides: `section.field=value`, for all trainings; what a row varies stays as the row has it.
        source: one of `SOURCES`: only the tables that are learnt from it.

    Raises:
        RecipeError: an override that no recipe takes.
    """
    made = _Plan(world, quick, tuple(overrides))
    tables = (table for number in numbers for table in (made.study(number) if number in STUDIES else [made.table(number)]))
    return tuple(table for table in tables if source is None or table.source == made.data(source))


def figure(world: World = "paper", *, quick: bool = False, overrides: Sequence[str] = ()) -> Training:
    """The training whose model Figure 3 shows: the paper's main setting on AudioCaps."""
    return _Plan(world, quick, tuple(overrides)).base("audiocaps", "resnet38")


class _Plan:
    """The tables of one world."""

    def __init__(self, world: World, quick: bool, overrides: tuple[str, ...]) -> None:
        self.world, self.quick, self.overrides = world, quick, overrides

    def table(self, number: str) -> Table:
        if number in ("1", "2", "3", "4"):
            return self._main(number)
        return {"5": self._strategies, "6": self._chains, "7": self._batches}[number]()

    def study(self, name: str) -> list[Table]:
        """The tables of a study: each data set's encoders in domain and out of it. Phase two is never hurried."""
        tables: list[Table] = []
        for source, others in (SOURCES, SOURCES[::-1]):
            base = self.base(source, "resnet38")
            rows = [Row("cosine", base, "baseline"), Row("cosine, QB-Norm", base, "qbnorm"), Row("cosine, walk", base, "walk")]
            trained: dict[tuple[str, ...], str] = {}  # by the fields of phase two, the name of the run that has such denoisers
            for label, suffix, fields in _LEVERS if name == "levers" else _FRAMES:
                own = tuple(field for field in fields if not field.startswith("evaluation."))
                both = f"[{','.join(map(self.data, SOURCES))}]"
                fields = tuple(field.format(both=both) for field in fields)
                training = self._phase_two(base, suffix, fields, frames=name == "frames")
                if own in trained:
                    training = replace(training, denoisers=trained[own])
                trained.setdefault(own, training.name)
                rows.append(Row(label, training, "diff"))
            if name == "levers":
                joint = self.variant(base, "joint", *_JOINT, own=True, diffusion=False)
                rows.append(Row("encoders and denoiser together", joint, "diff"))
            for target in (source, others):
                title = f"{name.capitalize()}, {'on' if target == source else f'from {source} to'} {target}"
                tables.append(Table(f"{name} {len(tables) + 1}", title, self.data(source), self.data(target), tuple(rows)))
        return tables

    def _phase_two(self, base: Training, suffix: str, fields: Sequence[str], *, frames: bool) -> Training:
        """Another phase two on the encoders of a base, by its recipe or by that with frames, of as many epochs as that has."""
        recipe = f"{base.recipe}-frames" if frames else base.recipe
        of_file = load_recipe(recipe, self.overrides).diffusion.epochs
        return replace(self.variant(base, suffix, *fields, f"diffusion.epochs={of_file}"), recipe=recipe)

    def data(self, name: str) -> str:
        """A data set of the paper, or its stand-in."""
        return name if self.world == "paper" else f"scenes-{name}"

    def base(self, data: str, encoder: str) -> Training:
        """The paper's main setting."""
        if self.world == "paper":
            return self._hurried(Training(f"{data}-{encoder}", f"{data}-{encoder}", self.overrides))
        name = f"scenes-{data}" if encoder == "resnet38" else f"scenes-{data}-narrow"
        return self._hurried(Training(name, f"scenes-{data}", (*_STAND_INS[encoder], *self.overrides)))

    def _hurried(self, training: Training) -> Training:
        """With `quick`, a fraction of the epochs, under a name of its own."""
        if not self.quick:
            return training
        recipe = training.resolved()
        epochs = {"pretrain": recipe.pretrain.epochs, "diffusion": recipe.diffusion.epochs}
        fewer = tuple(f"{section}.epochs={math.ceil(count / QUICK)}" for section, count in epochs.items())
        return replace(training, name=f"{training.name}-quick", overrides=(*training.overrides, *fewer))

    def variant(self, of: Training, suffix: str, *overrides: str, own: bool = False, diffusion: bool = True) -> Training:
        """A training that differs in some fields: on the encoders of another, or with its `own`."""
        name = of.name.removesuffix("-quick") + f"-{suffix}" + ("-quick" if self.quick else "")
        changed = tuple(each for each in of.overrides if each.partition("=")[0] not in {o.partition("=")[0] for o in overrides})
        return Training(name, of.recipe, (*changed, *overrides), None if own else of.name, diffusion)

    def row(self, label: str, training: Training, system: System, table: str, name: str | int, like: str, *more: str) -> Row:
        """A row of the paper's, by the recipe that it stands for, with `more` fields of its own."""
        paper = load_recipe(like, more)
        fields = differing_fields(paper, training.resolved())
        return Row(label, training, system, (table, name), tuple(field for field in fields if field != "data.name"))

    def _main(self, number: str) -> Table:
        source, target, key = {
            "1": ("audiocaps", "audiocaps", "table1_audiocaps"),
            "2": ("clotho", "clotho", "table2_clotho"),
            "3": ("clotho", "audiocaps", "table3_clotho_to_audiocaps"),
            "4": ("audiocaps", "clotho", "table4_audiocaps_to_clotho"),
        }[number]
        rows = []
        for encoder in ENCODERS:
            base = self.base(source, encoder)
            flat = self.variant(base, "no-diffusion", "diffusion.objective=discriminative")
            like = f"{source}-{encoder}"
            rows += [
                self.row(f"{encoder} (baseline)", base, "baseline", key, f"{encoder}_baseline", like),
                Row(f"{encoder}, QB-Norm", base, "qbnorm"),
                Row(f"{encoder}, the denoiser without diffusion", flat, "diff"),
                Row(f"{encoder}, Diff in one step", base, "one-step"),
                self.row(f"{encoder} (Diff)", base, "diff", key, f"{encoder}_diff", like),
            ]
        titles = {"1": "on AudioCaps", "2": "on Clotho", "3": "from Clotho to AudioCaps", "4": "from AudioCaps to Clotho"}
        return Table(number, f"Retrieval {titles[number]}", self.data(source), self.data(target), tuple(rows))

    def _strategies(self) -> Table:
        base, key = self.base("audiocaps", "resnet38"), "table5_training_strategy_audiocaps_resnet38"
        fields = ("model.strategy=gen", *_ONE_PHASE)
        alone = self.variant(base, "gen", *fields, own=True, diffusion=False)
        like = "audiocaps-resnet38"
        rows = (
            self.row("Gen", alone, "diff", key, "gen", f"{like}-gen"),
            self.row("Dis", base, "baseline", key, "dis", like),
            self.row("Gen+Dis", base, "diff", key, "gen_dis", like),
        )
        return Table("5", "Training strategies", self.data("audiocaps"), self.data("audiocaps"), rows)

    def _chains(self) -> Table:
        base, key, rows = self.base("audiocaps", "resnet38"), "table6_diffusion_steps_audiocaps_resnet38", []
        for steps in CHAINS:
            own = base.resolved().diffusion.steps == steps
            training = base if own else self.variant(base, f"steps{steps}", f"diffusion.steps={steps}")
            rows.append(self.row(str(steps), training, "diff", key, steps, f"audiocaps-resnet38-steps{steps}"))
        return Table("6", "Diffusion steps", self.data("audiocaps"), self.data("audiocaps"), tuple(rows))

    def _batches(self) -> Table:
        base, key, rows = self.base("clotho", "resnet38"), "table7_batch_size_clotho_resnet38", []
        recipe = base.resolved()
        for size in BATCHES:
            fields = (f"pretrain.batch_size={size}", f"diffusion.batch_size={size}")
            shared = recipe.pretrain.batch_size == size  # then phase one is the same
            own = shared and recipe.diffusion.batch_size == size
            training = base if own else self.variant(base, f"batch{size}", *fields, own=not shared)
            rows.append(self.row(str(size), training, "diff", key, size, f"clotho-resnet38-batch{size}"))
        return Table("7", "Training batch size", self.data("clotho"), self.data("clotho"), tuple(rows))
