"""What there is in a folder before anybody asks: its kinds of sound and a map of it, made in the background when first wanted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ..errors import DiffATRError
from .kinds_found import KindsFound, find_kinds
from .session import IndexState, SearchSession
from .sound_map import SoundMap, kept_map

T = TypeVar("T")


class Drawn(NamedTuple):
    """A map with what it is of, and with the kinds of the same version, if the model has any."""

    state: IndexState
    map: SoundMap
    kinds: KindsFound | None


class Told(NamedTuple):
    """Kinds with what they are of."""

    state: IndexState
    kinds: KindsFound | None


class Overview:
    """Of a session. Each method gives what there is now, None while the first is being made, and has it made anew where the
    index has changed and is not changing any more. It raises what the last attempt raised, once.
    """

    def __init__(self, session: SearchSession) -> None:
        self._session = session
        self._kinds = _Kept(session, self._find_kinds)
        self._map = _Kept(session, self._draw)

    def kinds(self) -> Told | None:
        """The kinds of sound. Raises DiffATRError."""
        return self._kinds.ask()

    def map(self) -> Drawn | None:
        """The map. Raises DiffATRError."""
        return self._map.ask()

    def _find_kinds(self, state: IndexState) -> Told:
        session = self._session
        return Told(state, find_kinds(session.model, state.recordings, session.sampling, session.patiently))

    def _draw(self, state: IndexState) -> Drawn:
        kinds = self._kinds.of(state).kinds
        path = self._session.folder.kept_file(f"map-v1-{self._session.model.model_id}").with_suffix(".npz")
        return Drawn(state, kept_map(path, state.version, state.recordings), kinds)


class _Kept(Generic[T]):
    """Something that is made of each version of an index, one at a time."""

    def __init__(self, session: SearchSession, make: Callable[[IndexState], T]) -> None:
        self._session, self._make = session, make
        self._making, self._guard = threading.Lock(), threading.Lock()
        self._made: tuple[str, T] | None = None
        self._thread: threading.Thread | None = None
        self._error: DiffATRError | None = None

    def ask(self) -> T | None:
        """What there is; begins what is missing."""
        state, made = self._session.state, self._made
        if made and made[0] == state.version:
            return made[1]
        with self._guard:
            if error := self._error:
                self._error = None
                raise error
            idle = self._thread is None or not self._thread.is_alive()
            if idle and (made is None or self._session.status.indexing is None):
                self._thread = threading.Thread(target=self._work, args=(state,), name="overview", daemon=True)
                self._thread.start()
        return made and made[1]

    def of(self, state: IndexState) -> T:
        """What is made of this state, here and now if it is not there."""
        with self._making:
            if self._made is None or self._made[0] != state.version:
                self._made = state.version, self._make(state)
            return self._made[1]

    def _work(self, state: IndexState) -> None:
        try:
            self.of(state)
        except DiffATRError as error:
            self._error = error
        except Exception:
            logging.getLogger(__name__).exception("the overview of the folder")
            self._error = DiffATRError("The overview of the folder could not be made. The server's log says why.")
