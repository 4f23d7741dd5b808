"""Fetching a model from the hub: said before it begins, taken up where it was cut off, checked when it has arrived."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DiffATRError, UsageError
from ..files import reason
from ..network import offline
from ..progress import ProgressLog

_log = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds that the hub may take to begin its answer
_SECONDS = 30.0  # between two lines about a download where nothing can be drawn


class _File(NamedTuple):
    """A file of a model on the hub: its size in bytes, and the hash that its content is kept under."""

    name: str
    size: int
    blob: str


def fetch(
    name: str, choose: Callable[[Iterable[str]], list[str]], weights: Callable[[str], bool], cache: Path, field: str
) -> Path:
    """Bring a model of the hub into its cache, as far as it is not there; the folder of its files.

    The small files are left to `huggingface_hub`. It forgets half a file when it is interrupted, so weights are brought here,
    into the place where it looks for them.

    Args:
        choose: of all the model's files, those that are wanted.
        weights: tells the large ones by their names.
        cache: where the hub's models are kept.
        field: what `name` was given as, for messages.

    Raises:
        UsageError: the hub can have no model of that name, or has none, or one without weights that are read here.
        DiffATRError: it cannot be reached or may not be asked, refuses, or sends something else; or the disk is full.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{field}: {name} is neither a folder nor a name that the hub could have (OWNER/NAME).") from None
    folder = cache / folder_name(name)
    if offline():
        there = f"only in part in {cache}" if folder.exists() else f"no local folder and not in {cache}"
        raise DiffATRError(f"{field}: {name} is {there}, and --offline was asked for. {_remedy(field)}")
    try:
        with _quiet():
            return _bring(name, choose, weights, folder, field)
    except DiffATRError:
        raise
    except Exception as error:  # of whatever library brings the bytes
        raise _told(error, name, folder, field) from error


def folder_name(name: str) -> str:
    """What the hub's cache calls the folder of a model; names hold no `--` of their own."""
    return "models--" + name.replace("/", "--")


def _bring(
    name: str, choose: Callable[[Iterable[str]], list[str]], weights: Callable[[str], bool], folder: Path, field: str
) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(name, files_metadata=True, timeout=_TIMEOUT)
    known = {each.rfilename: each for each in info.siblings or ()}
    wanted = [_as_file(known[file]) for file in choose(known)]
    large = [file for file in wanted if weights(file.name)]
    if not large or "config.json" not in known:
        raise UsageError(f"{field}: {name} holds no model that is read here: it needs config.json and model.safetensors.")
    parts = {file: folder / "blobs" / f"{file.blob}.part" for file in large if re.fullmatch("[0-9a-f]{40,64}", file.blob)}
    size = sum(file.size for file in wanted)
    # What is behind names of hashes is whole.
    there = sum(file.size for file in wanted if file.blob and (folder / "blobs" / file.blob).is_file())
    there += sum(part.stat().st_size for part in parts.values() if part.is_file())
    some = f", of which {there / 1e6:.1f} MB are there" if there else ""
    _log.info("fetching %s from the hub: %.1f MB%s, kept in %s", name, size / 1e6, some, folder)
    _check_room(folder, size - there, field, name)
    for file, part in parts.items():
        _bring_weights(name, info.sha or "main", file, part, field)
    with _no_bars():
        return Path(snapshot_download(name, allow_patterns=[file.name for file in wanted], cache_dir=folder.parent))


def _as_file(sibling: Any) -> _File:
    return _File(sibling.rfilename, sibling.size or 0, (sibling.lfs and sibling.lfs.sha256) or sibling.blob_id or "")


def _bring_weights(name: str, revision: str, file: _File, part: Path, field: str) -> None:
    """One large file, from where an earlier try was cut off, into the hub's cache."""
    from filelock import FileLock
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob = part.with_suffix("")
    if blob.is_file():
        return
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # parts of packed files do not fit together
    with FileLock(part.with_suffix(".part.lock")):  # another process may be bringing it
        if blob.is_file():
            return
        with part.open("ab") as out:
            http_get(
                hf_hub_url(name, file.name, revision=revision),
                out,
                resume_size=min(out.tell(), file.size),
                headers=headers,
                expected_size=file.size,
                displayed_filename=f"{name} {file.name}",
                tqdm_class=None if _can_draw() else _lines(f"fetching {name} {file.name} (MB)"),
            )
        if part.stat().st_size != file.size or not _is_content(part, file.blob):
            part.unlink()
            raise DiffATRError(
                f"{field}: {file.name} of {name} did not arrive as the hub has it. Run the command again to fetch it anew."
            )
        part.replace(blob)
    part.with_suffix(".part.lock").unlink(missing_ok=True)


def _is_content(path: Path, digest: str) -> bool:
    """Whether a file has the content of a hash: SHA-256 for large files, else that which git gives to a file."""
    with path.open("rb") as file:
        if len(digest) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        while block := file.read(1 << 20):
            found.update(block)
        return found.hexdigest() == digest


def _check_room(folder: Path, need: int, field: str, name: str) -> None:
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if need > (free := shutil.disk_usage(place).free):
        raise DiffATRError(
            f"{field}: {name} needs {need / 1e9:.1f} GB and the disk of {place} has {free / 1e9:.1f} GB left. Free some, or set "
            "HF_HOME to a folder of another disk."
        )


def _can_draw() -> bool:
    """Whether a bar can be drawn: a terminal, on which nobody draws yet, which shows in who has taken stderr."""
    return sys.stderr is sys.__stderr__ and sys.stderr is not None and sys.stderr.isatty()


def _lines(note: str, interval: float = _SECONDS, clock: Callable[[], float] = time.monotonic) -> Any:
    """A class that takes the place of a bar, for one download, and tells of it in a line each `interval` seconds."""

    class Lines:
        def __init__(self, *, total: float | None = None, initial: float = 0, **_: Any) -> None:
            self.done, self.total, self.told = initial, total or 0, clock()
            self.log = ProgressLog(clock)
            self.update(0)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, more: float | None = 1) -> None:
            self.done += more or 0
            self.log.update(int(self.done / 1e6), int(self.total / 1e6), note)
            if clock() - self.told >= interval:
                self.told = clock()
                _log.info("%s", self.log.line())

    return Lines


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines in which the hub's library tells of each try: what comes of them is told here."""
    talk = logging.getLogger("huggingface_hub")
    level = talk.level
    talk.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        talk.setLevel(level)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without the library's bars, of which it draws three for a few small files."""
    from huggingface_hub import utils

    bars: Any = utils  # which does not say what it exports
    hidden = bars.are_progress_bars_disabled()
    if not hidden:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            bars.enable_progress_bars()


def _remedy(field: str) -> str:
    return "Connect once, or name a folder that holds it" + (
        " (`text.encoder=minilm` needs neither)." if field == "text.encoder" else "."
    )


def _told(error: Exception, name: str, folder: Path, field: str) -> DiffATRError:
    """What went wrong, for people."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return DiffATRError(
            f"{field}: the hub gives {name} out only to whom its owners let in. Ask them on its page and run `hf auth login`, or "
            "name a folder that holds it."
        )
    if isinstance(error, RepositoryNotFoundError):
        return UsageError(f"{field}: {name} is no local folder, and the hub has no model of that name. Check the name.")
    if isinstance(error, HfHubHTTPError) and (response := getattr(error, "response", None)) is not None:
        return DiffATRError(
            f"{field}: {name} could not be fetched: the hub answered {response.status_code}. Try again later, or name a folder "
            "that holds it."
        )
    refused = error
    while refused.__cause__ is not None and isinstance(refused.__cause__, Exception):  # libraries wrap what has happened
        refused = refused.__cause__
    if isinstance(refused, OSError) and refused.errno is not None and refused.filename is not None:
        return DiffATRError(f"{field}: {name} cannot be kept in {refused.filename}: {reason(refused)}")
    if isinstance(refused, OSError) and "No space" in str(refused):
        return DiffATRError(f"{field}: {name} cannot be kept in {folder}: {reason(refused)}")
    return DiffATRError(
        f"{field}: {name} is no local folder and could not be fetched from the hub ({type(error).__name__}). {_remedy(field)}"
    )
