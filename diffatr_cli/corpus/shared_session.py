"""The session of each process of a service: one keeps the index up to date and publishes it, the others follow."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ..errors import DiffATRError
from ..progress import Progress, silent
from .board import Board, Mark
from .index import IndexReport
from .library import Searched
from .session import IndexState, IndexStatus, SearchSession, nothing_yet

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from ..model import Retriever

_POLL = 0.1  # seconds between two looks at what the others of a service want


class PublishingSession(SearchSession):
    """The session that keeps the index up to date, for itself and for those who follow.

    Its other arguments are those of `SearchSession`.

    Args:
        board: where it publishes.
        told: called with what came of an update that another process asked for.
    """

    def __init__(
        self,
        model: Retriever,
        folder: Searched,
        sampling: Sampling | None,
        tell: Callable[[str], None],
        board: Board,
        told: Callable[[IndexReport | DiffATRError], None] = lambda outcome: None,
    ) -> None:
        super().__init__(model, folder, sampling, tell)
        self._board, self._told = board, told
        self._keeping = threading.Thread(target=self._keep_board, name="board", daemon=True)

    def start(
        self,
        watch: Callable[[], AbstractContextManager[Progress]] = lambda: contextlib.nullcontext(silent),
        told: Callable[[IndexReport | DiffATRError], None] = lambda outcome: None,
    ) -> None:
        """As `SearchSession.start` the first time; from then on the others are told how the index stands.

        Later it asks for an update as they do: one that begins after that, whatever is under way.
        """
        if self._keeping.ident is None:
            super().start(watch, told)
            self._keeping.start()
        else:
            self._board.want_update()

    @property
    def status(self) -> IndexStatus:
        """As `SearchSession.status`. What was asked for and has not begun counts as begun."""
        status = super().status
        return status._replace(indexing=(0, 0)) if status.indexing is None and self._board.is_wanted() else status

    def stop(self, timeout: float = 5.0) -> None:
        """As `SearchSession.stop`."""
        super().stop(timeout)
        if self._keeping.ident is not None:
            self._keeping.join(timeout)

    def _load(self, *, settled: bool) -> None:
        super()._load(settled=settled)
        self._state = self._board.publish(self._state)

    def _keep_board(self) -> None:
        told: IndexStatus | None = None
        while not self._stopping.is_set():
            try:
                begins = self._indexing is None and self._board.is_wanted()
                if begins:
                    super().start(told=self._told)
                if (status := self.status) != told:
                    self._board.tell(status)
                    told = status
                if begins:  # not before the status tells of it: there is no moment at which it seems to be done
                    self._board.update_began()
            except (DiffATRError, OSError) as error:
                self._tell(f"The other workers cannot be told how the index stands: {error}")
            self._stopping.wait(_POLL)


class FollowingSession(SearchSession):
    """A session that searches what another process publishes, and takes up each version between two requests.

    Its other arguments are those of `SearchSession`.
    """

    def __init__(
        self, model: Retriever, folder: Searched, sampling: Sampling | None, tell: Callable[[str], None], board: Board
    ) -> None:
        self._board = board
        self._taking = threading.Lock()
        self._followed: tuple[Mark | None, IndexState] = None, nothing_yet()
        super().__init__(model, folder, sampling, tell)

    @property
    def _state(self) -> IndexState:
        mark, state = self._followed
        if self._board.mark() == mark:
            return state
        with self._taking:
            mark, state = self._followed
            now = self._board.mark()  # before what it is of: if that is of a later one, it is read again next time
            if now != mark and (published := self._board.published()):
                state = published
                if self.model.sees_frames:
                    state = state._replace(recordings=self.folder.with_frames(self.model.model_id, state.recordings))
                self._followed = now, state
            return state

    @_state.setter
    def _state(self, state: IndexState) -> None:
        """What `SearchSession` begins with; there is nothing else to set."""

    @property
    def status(self) -> IndexStatus:
        """How the index stands: what is searched here, and what the process that publishes it told."""
        told = self._board.status()  # before the state: what ends an update is published first, and told then
        recordings = self._state.recordings
        return told._replace(files=len(recordings), windows=len(recordings.spans))

    def start(
        self,
        watch: Callable[[], AbstractContextManager[Progress]] = lambda: contextlib.nullcontext(silent),
        told: Callable[[IndexReport | DiffATRError], None] = lambda outcome: None,
    ) -> None:
        """Get the model ready in a thread of its own the first time, and then ask for an update. Nobody watches it from here."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._get_ready, name="warm", daemon=True)
            self._thread.start()
        else:
            self._board.want_update()

    def update(self, progress: Progress = silent) -> IndexReport | None:
        """Is done by the process that publishes: asks for it and returns None."""
        self._board.want_update()
        return None

    def _get_ready(self) -> None:
        while self._board.mark() is None:
            if self._stopping.wait(_POLL):
                return
        with contextlib.suppress(DiffATRError):  # what is wrong shows in the first search
            self._warm()
