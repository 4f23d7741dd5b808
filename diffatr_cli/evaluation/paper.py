"""The numbers of the paper's Tables 1-7, to stand beside one's own. The data is `paper_results.yaml`, in percent."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from ..types import Direction, System


class PaperValue(NamedTuple):
    """One cell of the paper: the mean over three seeds, percent, and its deviation where the table prints one."""

    mean: float
    std: float | None


class SplitSize(NamedTuple):
    """How large a test set was in the paper; AudioCaps' clips have been vanishing ever since."""

    clips: int
    captions: int


TEST_SETS = {"audiocaps": SplitSize(957, 4785), "clotho": SplitSize(1045, 5225)}
BATCH_SIZES = {"audiocaps": 32, "clotho": 24}
CHAIN = 50

_MAIN_TABLES = {
    ("audiocaps", "audiocaps"): "table1_audiocaps",
    ("clotho", "clotho"): "table2_clotho",
    ("clotho", "audiocaps"): "table3_clotho_to_audiocaps",
    ("audiocaps", "clotho"): "table4_audiocaps_to_clotho",
}


@cache
def paper_tables() -> dict[str, Any]:
    """Tables 1-7 as nested dicts: table, row, direction, metric; a leaf is a mean or [mean, std], percent."""
    tables: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("paper_results.yaml").read_text("utf-8"))
    return tables


def paper_result(
    source: str,
    target: str,
    model: str,
    system: System,
    direction: Direction,
    *,
    strategy: str = "gen-dis",
    chain: int = CHAIN,
    batch_size: int | None = None,
) -> dict[str, PaperValue] | None:
    """What the paper reports for this setting: metric (`r1`, `r5`, `r10`) to value, or None where it reports nothing.

    `source` and `target` are `audiocaps` or `clotho`, `model` is `resnet38` or `cnn14`. `chain` is K; `batch_size` None
    means the paper's own for `source`. A setting that differs from Tables 1-4 is looked for in Tables 5-7, and one that
    differs in two ways from the paper's own has no number.
    """
    table = _MAIN_TABLES.get((source, target))
    if table is None or strategy == "joint":  # which the paper has not
        return None
    row: str | int = f"{model}_{system}"
    ablations: list[tuple[str, str, str | int]] = []  # (the main table it varies, its own table, its row)
    if batch_size is not None and batch_size != BATCH_SIZES[source]:
        ablations.append(("table2_clotho", "table7_batch_size_clotho_resnet38", batch_size))
    if system == "diff" and chain != CHAIN:
        ablations.append(("table1_audiocaps", "table6_diffusion_steps_audiocaps_resnet38", chain))
    if strategy == "gen" or (system == "diff" and strategy == "dis"):
        ablations.append(("table1_audiocaps", "table5_training_strategy_audiocaps_resnet38", strategy))
    if ablations:
        varied, ablation, ablation_row = ablations[0]
        if len(ablations) > 1 or varied != table or row != "resnet38_diff":
            return None
        table, row = ablation, ablation_row
    return paper_values(table, row, direction)


def paper_values(table: str, row: str | int, direction: Direction) -> dict[str, PaperValue] | None:
    """The figures of one row of `paper_tables`: metric to value, or None where the table has no such row."""
    cells = paper_tables()[table].get(row)
    if cells is None:
        return None
    return {
        metric: PaperValue(*cell) if isinstance(cell, list) else PaperValue(cell, None)
        for metric, cell in cells[direction].items()
    }
