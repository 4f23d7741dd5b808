"""Fit anew what lies on top of a trained model, on the validation split of the data that it learnt from.

    python tools/refit_small.py diffatr_cli/models/diffatr-small --data DIR [--name small] [--keep-fusion] [--composer FILE]

Writes into the model's folder, beside its weights, which stay as they are: the weight of x0_hat beside the cosine and how they
are joined (`evaluation.choose_fusion`), the captions learnt from (`training.learnt_captions`), and then what scores are worth
(`training.fit_calibration`). Prints what validation said. With `--keep-fusion` the first of these stays as it is. With
`--composer` a clip matches what the words mean, as `evaluate_small.py` judges it: a clip of heavy rain is one of rain, which its
captions do not say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from compose_small import load_composer, phrases_of
from evaluate_small import answered

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.core.scoring import Reranker
from diffatr_cli.core.text import normalise_caption
from diffatr_cli.data.manifest import Clip, Dataset, load_dataset
from diffatr_cli.evaluation.choose_fusion import Fusion, choose_fusion
from diffatr_cli.evaluation.embedded_split import Captions, embed_joined, embed_split, embed_windows
from diffatr_cli.evaluation.validation import Validation
from diffatr_cli.model import Retriever, load_retriever
from diffatr_cli.phase_two import save_bank
from diffatr_cli.recipe_schema import EvaluationSection
from diffatr_cli.runs import BEST, recipe_of
from diffatr_cli.training.fit_calibration import fit_calibration
from diffatr_cli.training.learnt_captions import learn_captions
from diffatr_cli.types import DIRECTIONS, Direction


def refit(
    run: Path, data: Path, name: str, *, keep_fusion: bool = False, composer: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Fit on the validation split of `data/name`, write, and tell what came out by direction."""
    dataset, model = load_dataset(data, name), load_retriever(run, "cpu")
    assert model.reranker is not None
    tensors, facts = load_weights(run / "diffusion" / BEST)
    fusions = {} if keep_fusion else _fusions(run, dataset, model)
    if fusions:
        facts |= {f"fusion_{key}s": {d: getattr(fusion, key) for d, fusion in fusions.items()} for key in ("weight", "shape")}
    weights, shapes = facts["fusion_weights"], facts.get("fusion_shapes")
    trained = model.reranker
    reranker = Reranker(trained.denoisers, trained.schedule, trained.sampling, weights, shapes, priors=trained.priors)
    captions, learnt = Captions.of(dataset.split("val")), Captions.of(dataset.split("train"))
    audio = embed_split(model, dataset, "train").audio.numpy()[None]
    bank, novelty = learn_captions(model, learnt, audio, captions.texts)
    windows, joined = embed_windows(model, dataset, "val"), embed_joined(model, dataset, "val", seed)
    text = model.embed_text(captions.texts)
    meant = None if composer is None else partial(meant_by_words, load_composer(composer, music=True), dataset.split("val"))
    calibration = fit_calibration(windows, text, captions, reranker, seed, novelty=novelty, joined=joined, meant=meant)
    save_bank(run / "diffusion", bank, model.model_id)
    save_weights(run / "diffusion" / BEST, tensors, facts | {"calibration": calibration.to_json()})
    told: dict[str, Any] = {direction: asdict(fusion) for direction, fusion in fusions.items()}
    told |= {"captions": len(bank.texts), "familiar": bank.familiar}
    return told | {"presence": calibration.measured, "captions_for_a_sound": calibration.captions_measured}


def meant_by_words(composer: ModuleType, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
    """Which clips of `compose_small.py` match some normalised texts by the kinds that they mean, (T, n) booleans."""
    answers = answered(composer)
    clauses = {
        kind: [normalise_caption(each) for each in (*terse, *wordy)] for kind, (_, terse, wordy) in composer.EVENTS.items()
    }
    kinds: list[set[str]] = []
    for clip in clips:
        part, name = Path(clip.path).parts[-2:]
        said = " | ".join(f" {normalise_caption(caption)} " for caption in clip.captions)
        if part in ("single", "whole", "blend"):
            kinds.append({name.rsplit("-", 1)[0]})
        else:
            kinds.append({kind for kind, own in clauses.items() if any(f" {each} " in said for each in own)})
    row = {text: number for number, text in enumerate(texts)}
    matches = np.zeros((len(texts), len(clips)), bool)
    for kind in composer.EVENTS:
        right = [bool(held & answers[kind]) for held in kinds]
        for phrase in map(normalise_caption, phrases_of(composer, kind)):
            if phrase in row:
                matches[row[phrase]] |= right
    return matches


def _fusions(run: Path, dataset: Dataset, model: Retriever) -> dict[Direction, Fusion]:
    """The weight of x0_hat beside the cosine and its shape, by direction, by validation."""
    clips, same, offered = dataset.split("val"), recipe_of(run).data.same_captions, EvaluationSection()
    splits = [Validation.of(embed_split(model, dataset, "val", same), clips, same)]
    assert model.reranker is not None
    what = model.reranker, offered.fusion_weights, offered.fusion_shapes
    return {direction: choose_fusion(splits, direction, *what) for direction in DIRECTIONS}


def main() -> None:
    """Refit a model and print what validation said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a seed folder with both phases, or the model's folder inside the package")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data sets")
    parser.add_argument("--name", default="small", help="the data set that the model learnt from")
    parser.add_argument("--keep-fusion", action="store_true", help="leave the weight of x0_hat as it is")
    parser.add_argument("--composer", type=Path, help="the file that knows the recordings")
    options = parser.parse_args()
    told = refit(options.run, options.data, options.name, keep_fusion=options.keep_fusion, composer=options.composer)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
