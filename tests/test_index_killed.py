"""kill -9 of `diffatr index` itself, with a trained model: the same command heals whatever is left."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_retriever import contents, write_tone

from diffatr_cli.corpus.index import FolderIndex
from diffatr_cli.model import load_retriever


def rows(index):
    """All rows of all tables, without the vectors, whose last bits depend on what was embedded together."""
    return {name: [row.split("'vector'")[0] for row in lines] for name, lines in contents(index).items()}


@pytest.mark.slow
def test_the_command_killed_at_random_moments(trained, tmp_path):
    clips, rng = tmp_path / "clips", random.Random(0)
    for i in range(80):
        write_tone(clips / str(i % 7) / f"{i}.wav", 100 + 37 * i, 0.3 if i % 10 else 11, seed=i)
    killed, calm = FolderIndex(clips, tmp_path / "killed"), FolderIndex(clips, tmp_path / "calm")
    model = load_retriever(trained, "cpu")
    want = calm.update(model)
    arguments = ("index", clips, "--index", killed.folder, "--run", trained, "--device", "cpu", "--json")
    command = [sys.executable, "-m", "diffatr_cli", *map(str, arguments)]

    in_time, lock = 0, killed.folder / "lock"
    for wait in (rng.uniform(0, 0.1), rng.uniform(0, 0.4), rng.uniform(0, 1.5)):  # seconds after the update began
        lock.unlink(missing_ok=True)  # nobody holds it now; a new one shows that the update has begun
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not lock.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(wait)
        process.kill()
        in_time += process.wait() == -9
    assert in_time

    document = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (document["files"], document["windows"], document["skipped"]) == (80, want.windows, [])
    assert document["embedded"] + document["reused"] + document["unchanged"] == 80
    assert rows(killed) == rows(calm)
    got, expected = killed.read(model.model_id), calm.read(model.model_id)
    assert (got.paths, got.content.tolist(), got.offsets.tolist()) == (
        expected.paths,
        expected.content.tolist(),
        expected.offsets.tolist(),
    )
    np.testing.assert_array_equal(got.spans, expected.spans)
    np.testing.assert_allclose(got.vectors, expected.vectors, atol=1e-3)
