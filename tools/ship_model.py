"""Put a trained run into the package in half precision: what `query`, `index` and `serve` use when no run is named.

    python tools/ship_model.py runs/small/seed-0 diffatr_cli/models/diffatr-small

Keeps what inference reads and what tells where it came from: both phases' weights, recipe, record and metrics, and the captions
learnt from. The list of its kinds is `tools/list_kinds.py`'s to write.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from diffatr_cli.checkpoint import load_weights, save_weights
from diffatr_cli.model import id_of_encoders
from diffatr_cli.phase_two import load_bank, save_bank
from diffatr_cli.runs import BEST, weights_hash

LARGEST = 30_000_000  # bytes


def ship(run: Path, out: Path) -> int:
    """Write the model folder; its size in bytes. Raises ValueError if that is more than a package should carry."""
    for phase in ("pretrain", "diffusion"):
        (out / phase).mkdir(parents=True, exist_ok=True)
        for name in ("recipe.yaml", "run.json", "metrics.csv"):
            (out / phase / name).unlink(missing_ok=True)
            if (run / phase / name).exists():  # phase one of a joined model has no metrics of its own
                shutil.copyfile(run / phase / name, out / phase / name)
        tensors, facts = load_weights(run / phase / BEST)
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        lost = [name for name, tensor in half.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
        if lost:
            raise ValueError(f"{run / phase}: {', '.join(lost)} do not fit half precision")
        if phase == "diffusion":
            facts |= {"encoders": weights_hash(out / "pretrain" / BEST)}
        save_weights(out / phase / BEST, half, facts)
    # Its texts go with it, but the id of its encoders is that of the checkpoint in half precision.
    if bank := load_bank(run / "diffusion", id_of_encoders(weights_hash(run / "pretrain" / BEST))):
        save_bank(out / "diffusion", bank, id_of_encoders(weights_hash(out / "pretrain" / BEST)))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if size > LARGEST:
        raise ValueError(f"{out}: {size / 1e6:.1f} MB are more than the {LARGEST / 1e6:.0f} MB that a package should carry")
    return size


def main() -> None:
    """Ship a run and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a seed folder with both phases")
    parser.add_argument("out", type=Path, help="the model's folder inside the package")
    options = parser.parse_args()
    print(f"{options.out}: {ship(options.run, options.out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
