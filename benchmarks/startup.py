"""What a command costs in a fresh process: imports, and a whole query against an index of 10,000 short clips.

The model is the demo recipe's after one epoch. The commands take turns; each figure is the median.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from diffatr_cli.data.write_wav import write_wav
from diffatr_cli.runs import recipe_of
from diffatr_cli.types import SAMPLE_RATE

from .common import Case, Row, Size, pick, seconds

ROOT = Path(__file__).parents[1]
QUERY = "a dog barking"
FORWARD = f"""
import sys, time
from diffatr_cli.pretrained import load_text_encoder
text = load_text_encoder(sys.argv[1]).eval()
started = time.perf_counter()
text.encode([{QUERY!r}])
print(time.perf_counter() - started)
"""
SEARCH = f"""
import sys, time
from pathlib import Path
from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.model import load_retriever
from diffatr_cli.corpus.search import embed_texts, search
model = load_retriever(Path(sys.argv[1]), "cpu")
recordings = FolderIndex(Path(sys.argv[2])).read(model.model_id)
query = embed_texts(model, [{QUERY!r}])
started = time.perf_counter()
search(model, recordings, query)
print(time.perf_counter() - started)
"""


def python(*arguments: str | Path) -> str:
    """Run a fresh interpreter; its standard output."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_run(folder: Path) -> Path:
    """The demo recipe's run folder after one epoch of each phase on a few synthetic clips."""
    from diffatr_cli.data.synthetic import prepare_synthetic
    from diffatr_cli.recipe import load_recipe
    from diffatr_cli.training.pretrain import pretrain
    from diffatr_cli.training.train_diffusion import train_diffusion

    prepare_synthetic(folder / "data" / "synthetic", train=32, val=8, test=8, workers=1)
    recipe = load_recipe("demo", ("pretrain.epochs=1", "diffusion.epochs=1"))
    for job in (pretrain, train_diffusion):
        result = job("demo", recipe, data=folder / "data", runs=folder / "runs", device="cpu")
    return result.folder.parent


def make_clips(folder: Path, count: int) -> Path:
    """Clips of a tenth of a second, no two alike."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i % 100:02d}" / f"clip {i:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, rng.integers(-9000, 9000, SAMPLE_RATE // 10, np.int16))
    return folder


def fresh_processes(size: Size, run: Path | None = None) -> list[Row]:
    """All commands in turns; `run` is a run folder to use instead of a new one."""
    count = pick(size, 20, 1_000, 10_000)
    with tempfile.TemporaryDirectory() as name:
        run = run or make_run(Path(name))
        clips = make_clips(Path(name) / "clips", count)
        model = ("--run", run, "--device", "cpu")
        python("-m", "diffatr_cli", "index", clips, *model, "--json")
        encoder = recipe_of(run).text.encoder
        ways: dict[str, Callable[[], float]] = {
            "torch": lambda: seconds(lambda: python("-c", "import torch")),
            "bert": lambda: seconds(lambda: python("-c", "from transformers import BertModel")),
            "forward": lambda: float(python("-c", FORWARD, encoder)),
            "search": lambda: float(python("-c", SEARCH, run, clips)),
            "query": lambda: seconds(lambda: python("-m", "diffatr_cli", "query", QUERY, "--corpus", clips, *model, "--json")),
            "index": lambda: seconds(lambda: python("-m", "diffatr_cli", "index", clips, *model, "--json")),
            "typer": lambda: seconds(lambda: python("-c", "import typer, rich")),
            "help": lambda: seconds(lambda: python("-m", "diffatr_cli", "--help")),
        }
        turns = [{name: way() for name, way in ways.items()} for _ in range(pick(size, 1, 3, 7))]
    took = {name: median(turn[name] for turn in turns) for name in ways}
    beside = took["query"] / (took["torch"] + took["forward"])
    return [
        Row("import torch", took["torch"]),
        Row("import BertModel from transformers", took["bert"]),
        Row("the text tower's first forward", took["forward"], remark="inside a process that has loaded it"),
        Row(
            f"diffatr query, {count:,} clips",
            took["query"],
            goal="goal: at most 1.6 times import torch and the forward",
            remark=f"{beside:.2f} times",
        ),
        Row("of which the search", took["search"], goal="goal: under 0.1 s", remark="first search of a process"),
        Row(f"diffatr index, {count:,} unchanged clips", took["index"]),
        Row("import typer and rich", took["typer"]),
        Row("diffatr --help", took["help"], remark=f"{took['help'] / took['typer']:.2f} times typer and rich"),
    ]


def cases(size: Size) -> dict[str, Case]:
    """The benchmarks of this topic."""
    return {"fresh processes": fresh_processes}
