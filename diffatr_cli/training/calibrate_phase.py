"""What a freshly trained model's scores are worth, kept beside its denoisers: the last step of training with diffusion."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data.manifest import Dataset
from ..evaluation.embedded_split import Captions, cached_split, cached_windows, embed_joined
from ..evaluation.states import cached_states_of_windows
from ..model import load_retriever
from ..phase_two import save_bank
from ..processes import is_first
from ..progress import Progress
from ..recipe_schema import Recipe
from ..runs import Encoders
from .fit_calibration import fit_calibration
from .learnt_captions import learn_captions
from .phase_folder import PhaseFolder
from .views import load_views, views_place


def calibrate_phase(
    run: Path,
    first: Encoders,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    folder: PhaseFolder,
    progress: Progress,
) -> None:
    """Fit what a run's scores are worth on the validation split, and keep the captions that it learnt from, once.

    Args:
        first: the encoders of the run.
        seed: of what is drawn.
        folder: of its denoisers, whose best model the fit is kept with.
    """
    tensors, facts = folder.load_best()
    if facts.get("calibration"):
        return
    progress(0, 1, "calibrating scores")
    retriever = load_retriever(run, str(device))
    assert retriever.reranker is not None
    captions = Captions.of(dataset.split("val"))
    split = cached_split(retriever, first.run, dataset, "val", recipe.data.same_captions, progress)
    windows = cached_windows(retriever, first.run, dataset, "val", progress)
    states = None
    if retriever.sees_frames:
        states = cached_states_of_windows(retriever, first.run, dataset, "val", windows, progress)
    learnt, same, audio = Captions.of(dataset.split("train")), recipe.data.same_captions, None
    if retriever.given_sizes is None:  # else there are no captions to learn
        views = load_views(*views_place(first, retriever, dataset, recipe.diffusion.views), learnt, same)
        audio = cached_split(retriever, first.run, dataset, "train", same, progress).audio[None] if views is None else views.audio
    if is_first():
        novelty = None
        if audio is not None:
            bank, novelty = learn_captions(retriever, learnt, audio.numpy(), captions.texts)
            save_bank(folder.path, bank, retriever.model_id)
        joined = None if retriever.sees_frames else embed_joined(retriever, dataset, "val", seed)
        fitted = fit_calibration(windows, split.text.numpy(), captions, retriever.reranker, seed, states, novelty, joined)
        facts |= {"calibration": fitted.to_json()}
    folder.keep_best(tensors, facts)
    progress(1, 1, "calibrating scores")
