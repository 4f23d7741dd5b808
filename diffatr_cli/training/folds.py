"""Phase two on embeddings of clips that no encoder was trained on: held-out folds of the training split.

Phase one all but memorises its training clips: they lie closer to their captions than any new clip does, and a denoiser that
learns on them meets another distribution at test time. So the training clips are dealt into folds, phase one is trained once
more for each fold on all others (`RUN/folds/0-of-2/pretrain` and so on, in the folder of the run whose encoders these stand
for, so that every phase two on it shares them), and each fold is embedded by the encoders that never heard it. Vectors of
different encoders do not compare. A batch is therefore of one fold, and each fold's space is turned onto that of the run's own
encoders, which embed queries and candidates at test time, by the rotation that fits best on what both were trained on.

n clips of the training split, m captions, D embedding size.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.procrustes import rotation_onto
from ..data.manifest import Dataset
from ..device import wants_bf16
from ..errors import UsageError
from ..evaluation.embedded_split import Captions, cached_split
from ..model import Retriever, load_encoders
from ..processes import from_first
from ..progress import Progress
from ..recipe import load_recipe
from ..recipe_schema import DiffusionSection, Recipe
from ..runs import BEST, RECIPE, RECORD, Encoders, fold_folder, read_record
from .candidates import CandidateBatches, Task
from .clips import some_clips, training_clips
from .phase_folder import PhaseFolder
from .pretrain import pretrain_fold
from .streams import numpy_stream
from .views import TrainingViews, augmented_views, embed_views, load_towers, load_views, save_views, views_place


class Batches(Protocol):
    """Phase two's batches of every epoch."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def __call__(self, epoch: int, inside: int) -> Iterator[Task]:
        """What a batch of an epoch asks."""


@dataclass(frozen=True)
class Fold:
    """One fold: which it is, of how many, and the places in the training split of its clips and of all others, ascending."""

    number: int
    of: int
    inside: np.ndarray
    outside: np.ndarray

    def __str__(self) -> str:
        return f"fold {self.number + 1} of {self.of}"


def deal(clip_ids: Sequence[str], group: np.ndarray, folds: int) -> np.ndarray:
    """(n,) the fold of each clip, from 0: as many clips in each as can be, and clips of one group (n,) together.

    Which fold a clip is in depends on the ids and groups there are, not on their order.

    Raises:
        UsageError: groups are so large that a fold would have less than half of its share.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for clip, number in enumerate(group.tolist()):
        members[number].append(clip)
    drawn = [hashlib.sha256(clip_id.encode()).digest() for clip_id in clip_ids]
    fold, sizes = np.zeros(len(clip_ids), int), [0] * folds
    for clips in sorted(members.values(), key=lambda some: (-len(some), min(drawn[clip] for clip in some))):
        smallest = min(range(folds), key=sizes.__getitem__)
        fold[clips] = smallest
        sizes[smallest] += len(clips)
    if min(sizes) * 2 * folds < len(clip_ids) or not min(sizes):
        raise UsageError(
            f"diffusion.folds: the {len(clip_ids)} training clips cannot be dealt into {folds} folds. Clips that share a caption "
            f"stay together (data.same_captions), and {max(map(len, members.values()))} are linked so. Set fewer folds, or 0."
        )
    return fold


def folds_of(dataset: Dataset, recipe: Recipe, folds: int) -> list[Fold]:
    """The training split of a data set in so many folds. Raises as `deal`."""
    clips = dataset.split("train")
    group = Captions.of(clips).positive_groups(recipe.data.same_captions)
    fold = deal([clip.clip_id for clip in clips], group, folds)
    return [Fold(i, folds, np.flatnonzero(fold == i), np.flatnonzero(fold != i)) for i in range(folds)]


class FoldedBatches:
    """Batches of which each is of one fold, those of all folds shuffled together anew every epoch.

    Args:
        views: of each fold.
        section, seed, device: as of `CandidateBatches`.
    """

    def __init__(
        self, views: Sequence[TrainingViews], section: DiffusionSection, seed: int, device: torch.device = torch.device("cpu")
    ) -> None:
        self._folds = [CandidateBatches(each, section, seed, device) for each in views]
        self._seed = seed

    def __len__(self) -> int:
        return sum(map(len, self._folds))

    def __call__(self, epoch: int, inside: int) -> Iterator[Task]:
        fold, place = self.place(epoch, inside)
        # A counter of its own for each fold and epoch, so that no two draw the same numbers.
        return self._folds[fold](epoch * len(self._folds) + fold, place)

    def place(self, epoch: int, inside: int) -> tuple[int, int]:
        """Of which fold a batch of an epoch is, and which of that fold's batches."""
        each = np.repeat(np.arange(len(self._folds)), [len(fold) for fold in self._folds])
        order = numpy_stream(self._seed, "fold order", epoch).permutation(each)
        fold = int(order[inside])
        return fold, int((order[:inside] == fold).sum())


def folded_batches(
    first: Encoders,
    retriever: Retriever,
    section: DiffusionSection,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    folder: PhaseFolder,
    epochs_done: int,
    progress: Progress,
) -> FoldedBatches:
    """Phase two's batches by held-out folds. Trains what is not there yet of the encoders, and embeds each fold.

    Args:
        first, retriever: the encoders that phase two stands on.
        seed: of phase two.
        folder: of phase two; its record keeps the hashes of the folds' encoders.
        epochs_done: of phase two, which has to go on with the encoders that it was begun with.

    Raises:
        UsageError: the clips cannot be dealt, the folds' folders hold another recipe's runs, or another process trains there; or
            phase two was begun with other encoders than the folds have now.
        DiffATRError: as `pretrain`.
    """
    recipe = load_recipe(first.folder / RECIPE)
    trained = _train_folds(first, recipe, dataset, section.folds, device, folder.command, progress)
    hashes = [encoders.check() for _, encoders in trained]
    if epochs_done and folder.recorded("folds") != hashes:
        raise UsageError(
            f"{folder.path}: was begun with other encoders of the folds than {first.run / 'folds'} holds now. Restore them, or "
            "start with a new --name."
        )
    folder.add_fact("folds", hashes)
    whole = cached_split(retriever, first.run, dataset, "train", progress=progress)
    captions = Captions.of(dataset.split("train"))
    views = []
    for fold, encoders in trained:
        told = _named(fold, progress)
        model = load_encoders(encoders.run, str(device))
        own = cached_split(model, encoders.run, dataset, "train", progress=told)
        rows = captions.rows_of(fold.outside)
        anchors = [torch.cat([split.audio[fold.outside], split.text[rows]]) for split in (own, whole)]
        rotation = from_first(rotation_onto(*anchors))
        found = _views_of(fold, encoders, recipe, model, own.text, section.views, dataset, device, told)
        views.append(replace(found, audio=_turned(found.audio, rotation), text=_turned(found.text, rotation)))
    return FoldedBatches(views, section, seed, device)


def _train_folds(
    first: Encoders, recipe: Recipe, dataset: Dataset, folds: int, device: torch.device, command: str, progress: Progress
) -> list[tuple[Fold, Encoders]]:
    """The encoders of each fold, trained on all other folds as `first` was on all clips: the same recipe and seed."""
    seed = int(read_record(first.folder / RECORD)["seed"])
    trained = []
    for fold in folds_of(dataset, recipe, folds):
        run = fold_folder(first.run, fold.number, folds)
        told = _named(fold, progress)
        pretrain_fold(run, recipe, dataset, fold.outside, str(fold), seed=seed, device=device, command=command, progress=told)
        trained.append((fold, Encoders(run)))
    return trained


def _views_of(
    fold: Fold,
    encoders: Encoders,
    recipe: Recipe,
    model: Retriever,
    text: Tensor,
    count: int,
    dataset: Dataset,
    device: torch.device,
    progress: Progress,
) -> TrainingViews:
    """A fold's clips under augmentation and its captions by encoders that never met them, from their folder or computed into it.

    `text`: (m, D) all captions of the training split by these encoders.
    """
    path, source = views_place(encoders, model, dataset, count)
    source["fold"] = str(fold)
    whole, same = Captions.of(dataset.split("train")), recipe.data.same_captions
    captions = whole.only(fold.inside)
    if (cached := load_views(path, source, captions, same)) is not None:
        return cached
    seed = int(read_record(encoders.folder / RECORD)["seed"])
    towers = load_towers(encoders.folder / BEST, recipe, dataset.given_sizes, device)
    clips = training_clips(dataset, towers.audio, recipe.audio, recipe.data.seconds, model, progress)
    bf16 = wants_bf16(recipe.pretrain.precision, device)
    pooled = augmented_views(towers.audio, some_clips(clips, fold.inside), count, seed, bf16, device, progress)
    audio = embed_views(towers, pooled, device)
    return save_views(path, source, audio, text[whole.rows_of(fold.inside)], captions, same)


def _turned(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Unit vectors (..., D) turned, in their own precision."""
    return functional.normalize(vectors.double() @ rotation, dim=-1).to(vectors.dtype)


def _named(fold: Fold, progress: Progress) -> Progress:
    """Progress that says of which fold it is."""
    return lambda done, total, note: progress(done, total, f"{fold}: {note}")
