"""Fitting what any model's scores are worth on any prepared set with captions, and keeping it for the searches to come."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..calibrations import save_calibration
from ..core.calibration import Calibration
from ..data.manifest import load_dataset
from ..errors import DiffATRError
from ..evaluation.embedded_split import Captions, check_fit, embed_joined, embed_windows
from ..evaluation.states import states_of_windows
from ..model import Retriever
from ..printable import counted
from ..progress import Progress, silent
from .fit_calibration import fit_calibration
from .learnt_captions import novelty_of


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` fitted, where it is kept, and on how much."""

    path: Path
    model: str
    data: str
    split: str
    clips: int
    captions: int
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """The document of `calibrate --json`."""
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "clips": self.clips,
            "captions": self.captions,
            "kept": str(self.path),
            "calibration": self.calibration.to_json(),
        }


def calibrate(
    model: Retriever, data: Path, name: str, *, split: str = "val", seed: int = 0, progress: Progress = silent
) -> CalibrationResult:
    """Fit a model's probabilities and its judgement of presence on a split of the prepared data set `data/name`.

    The split should hold clips that the model was not trained on: on others it is surer of its matches than it will be.

    Raises:
        UsageError: the set holds vectors of another model.
        DiffATRError: the set is not prepared, or nothing could be fitted on its split.
    """
    dataset = load_dataset(data, name)
    check_fit(model, dataset)
    captions = Captions.of(dataset.split(split))
    text = model.embed_text(captions.texts)
    windows = embed_windows(model, dataset, split, progress)
    novelty = None if model.bank is None else novelty_of(model, model.bank, captions.texts)
    with tempfile.TemporaryDirectory(prefix="diffatr-", ignore_cleanup_errors=True) as folder:
        states = states_of_windows(model, dataset, split, windows, Path(folder), progress) if model.sees_frames else None
        progress(0, 1, "fitting")
        joined = None if model.sees_frames else embed_joined(model, dataset, split, seed)
        fitted = fit_calibration(windows, text, captions, model.reranker, seed, states, novelty, joined)
    if not any((fitted.text_to_audio, fitted.audio_to_text, fitted.audio_to_audio, fitted.presence, fitted.captions)):
        clips = counted(len(windows.offsets) - 1, "clip")
        raise DiffATRError(
            f"{dataset.root}: nothing can be fitted on its {split} split of {clips}: every clip matches every caption, or none "
            "does. Name a set with more and other clips."
        )
    facts = {
        "model": model.name,
        "data": name,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "seed": seed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = save_calibration(model.calibration_key, fitted, facts)
    progress(1, 1, "fitting")
    return CalibrationResult(path, model.name, name, split, len(windows.offsets) - 1, len(captions.texts), fitted)
