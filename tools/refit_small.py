"""Fit anew what lies on top of a trained model, on the validation split of the data that it learnt from.

    python tools/refit_small.py diffatr_cli/models/diffatr-small --data DIR [--name small]

Writes into the model's folder, beside its weights, which stay as they are: the weight of x0_hat beside the cosine and how they
are joined (`evaluation.choose_fusion`), the captions learnt from (`training.learnt_captions`), and then what scores are worth
(`training.fit_calibration`). Prints what validation said.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.core.scoring import Reranker
from diffatr_cli.data.manifest import load_dataset
from diffatr_cli.evaluation.choose_fusion import choose_fusion, fusion_task
from diffatr_cli.evaluation.embedded_split import Captions, embed_split, embed_windows
from diffatr_cli.model import load_retriever
from diffatr_cli.phase_two import save_bank
from diffatr_cli.recipe_schema import EvaluationSection
from diffatr_cli.runs import BEST, recipe_of
from diffatr_cli.training.fit_calibration import fit_calibration
from diffatr_cli.training.learnt_captions import learn_captions
from diffatr_cli.types import DIRECTIONS


def refit(run: Path, data: Path, name: str, seed: int = 0) -> dict[str, Any]:
    """Fit on the validation split of `data/name`, write, and tell what came out by direction."""
    dataset, model, offered = load_dataset(data, name), load_retriever(run, "cpu"), EvaluationSection()
    clips, same = dataset.split("val"), recipe_of(run).data.same_captions
    assert model.reranker is not None
    split = embed_split(model, dataset, "val", same)
    fusions = {
        direction: choose_fusion(
            split,
            direction,
            model.reranker,
            fusion_task(split, direction, clips, same),
            offered.fusion_weights,
            offered.fusion_shapes,
        )
        for direction in DIRECTIONS
    }
    weights, shapes = ({d: getattr(fusion, key) for d, fusion in fusions.items()} for key in ("weight", "shape"))
    reranker = Reranker(model.reranker.denoisers, model.reranker.schedule, model.reranker.sampling, weights, shapes)
    windows = embed_windows(model, dataset, "val")
    captions = Captions.of(clips)
    bank, novelty = learn_captions(model, [text for clip in dataset.split("train") for text in clip.captions], captions.texts)
    calibration = fit_calibration(windows, split.text.numpy(), captions, reranker, seed, novelty)
    save_bank(run / "diffusion", bank, model.model_id)
    tensors, facts = load_weights(run / "diffusion" / BEST)
    fitted = {"fusion_weights": weights, "fusion_shapes": shapes, "calibration": calibration.to_json()}
    save_weights(run / "diffusion" / BEST, tensors, facts | fitted)
    told: dict[str, Any] = {direction: asdict(fusion) for direction, fusion in fusions.items()}
    return told | {"captions": len(bank.texts), "familiar": bank.familiar, "presence": calibration.measured}


def main() -> None:
    """Refit a model and print what validation said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a seed folder with both phases, or the model's folder inside the package")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of prepared data sets")
    parser.add_argument("--name", default="small", help="the data set that the model learnt from")
    options = parser.parse_args()
    print(json.dumps(refit(options.run, options.data, options.name), indent=2))


if __name__ == "__main__":
    main()
