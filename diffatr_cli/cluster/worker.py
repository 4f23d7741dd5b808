"""What the workers of a cluster do, each an actor of Ray Data, and what they send."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import __version__
from ..engines import by_item
from ..errors import DiffATRError, UsageError

_FLUSH = 1 << 20  # bytes of pieces that a worker collects before they go to the driver


class Row(NamedTuple):
    """What a worker sends.

    Attributes:
        item: which one it is of, -1 for the worker itself.
        number: of the piece among those of the item; of an end, how many pieces there were.
        kind: "piece", "end" (of the item), "lost" (as is why), "failed" (the work itself).
        value: the piece, or words.
    """

    item: int
    number: int
    kind: str
    value: Any


class Notes:
    """Which batches and items are being worked on, kept apart from the workers, so that they outlive them."""

    def __init__(self) -> None:
        self._batches: set[int] = set()
        self._items: set[int] = set()

    def begin(self, batch: int) -> bool:
        """Note that a batch is begun; whether it was before, and not ended."""
        again = batch in self._batches
        self._batches.add(batch)
        return again

    def enter(self, item: int) -> bool:
        """Note that an item is begun alone; whether it was before, and not left."""
        again = item in self._items
        self._items.add(item)
        return again

    def leave(self, item: int) -> None:
        """Note that an item is done."""
        self._items.discard(item)

    def end(self, batch: int) -> None:
        """Note that a batch is done."""
        self._batches.discard(batch)


class Worker:
    """What an actor of Ray Data holds: the function of a work, with its state."""

    def __init__(self, work: Any, notes: Any, version: str) -> None:
        import ray

        self._ray, self._notes, self._failure = ray, notes, None
        try:
            if version != __version__:
                raise DiffATRError(f"diffatr {__version__} is installed there, and {version} here. Install the same everywhere.")
            work = pickle.loads(ray.get(work) if isinstance(work, ray.ObjectRef) else work)
            self._function: Callable[[Sequence[Any]], Iterator[tuple[int, Any]]] = work.open()
        except Exception as error:  # raised here, it would come out as one of Ray's
            self._failure = packed(error, _here(), tell=True)

    def __call__(self, batches: Any) -> Iterator[Any]:
        import pyarrow as pa

        schema = pa.schema([("rows", pa.large_binary())])
        for first, items in zip(batches["first"].to_pylist(), batches["items"].to_pylist(), strict=True):
            rows, size = list[Row](), 0
            for row in self._rows(first, pickle.loads(items)):
                rows.append(row)
                size += _bytes(row.value)
                if size > _FLUSH:
                    yield pa.table([[pickle.dumps(rows)]], schema=schema)
                    rows, size = [], 0
            yield pa.table([[pickle.dumps(rows)]], schema=schema)

    def _rows(self, first: int, items: Sequence[Any]) -> Iterator[Row]:
        if self._failure is not None:
            yield Row(-1, 0, "failed", self._failure)
            return
        try:
            if self._note("begin", first):
                for place, item in enumerate(items):
                    if self._note("enter", first + place):
                        yield Row(first + place, 0, "lost", "the process that worked on it died twice")
                    else:
                        yield from _numbered(self._function([item]), first + place, 1)
                        self._note("leave", first + place)
            else:
                yield from _numbered(self._function(items), first, len(items))
            self._note("end", first)
        except Exception as error:
            yield Row(-1, 0, "failed", packed(error, _here()))

    def _note(self, what: str, number: int) -> Any:
        return self._ray.get(getattr(self._notes, what).remote(number))


def _numbered(pieces: Iterator[tuple[int, Any]], first: int, count: int) -> Iterator[Row]:
    """The rows of `count` items, of which `first` is the number of the first one."""
    for place, lane in enumerate(by_item(pieces, count)):
        number = -1
        for number, piece in enumerate(lane):
            yield Row(first + place, number, "piece", piece)
        yield Row(first + place, number + 1, "end", None)


def _here() -> str:
    return f"a worker on {socket.gethostname()}"


def _bytes(value: Any) -> int:
    """About how many a piece takes."""
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 100))


Packed = tuple[type[DiffATRError], tuple[str, ...]]


def packed(error: Exception, where: str, *, tell: bool = False) -> Packed:
    """An error as it travels: with `where`, if it is an unexpected one, or if that is to be told."""
    if not isinstance(error, DiffATRError):
        told = " ".join(str(error).split())
        return DiffATRError, (f"{where}: unexpected {type(error).__name__}: {told}",)
    kind = UsageError if isinstance(error, UsageError) else DiffATRError
    first, *more = map(str, error.args)
    return kind, (f"{where}: {first}" if tell else first, *more)


def failure(packed: Packed) -> DiffATRError:
    """The error that it was."""
    kind, words = packed
    return kind(*words)
