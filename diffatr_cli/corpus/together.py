"""Who asks while others are answered is answered together with all who wait by then: ten texts cost little more than one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from .stopwatch import stage

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

MOST = 64
"""Answered together, so that none waits for a crowd."""


class _Waiting(Generic[Asked, Answer]):
    """One who asks. `turn` is set when there is an answer or an error, or when it is its turn to answer for all who wait."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.turn = threading.Event()
        self.answers: list[Answer] = []
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return bool(self.answers) or self.error is not None


class Together(Generic[Asked, Answer]):
    """Gives each who asks its own answer, out of one call for all that wait.

    Args:
        answer: gives the answers of several who ask, in their order.
        turn: held while it works.
        most: answered at once.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer]],
        turn: Callable[[], AbstractContextManager[None]],
        most: int = MOST,
    ) -> None:
        self._answer, self._turn, self._most = answer, turn, most
        self._guard = threading.Lock()
        self._waiting: deque[_Waiting[Asked, Answer]] = deque()
        self._led = False

    def __call__(self, asked: Asked) -> Answer:
        """The answer to one. Raises what `answer` raises of it alone."""
        own: _Waiting[Asked, Answer] = _Waiting(asked)
        with self._guard:
            self._waiting.append(own)
            leads, self._led = not self._led, True
        if not leads:
            with stage("wait"):
                own.turn.wait()
        if not own.done:
            self._lead()
        if own.error is not None:
            raise own.error
        return own.answers[0]

    def _lead(self) -> None:
        """Answer for those who wait, the caller among them, who is the first; then the next one leads."""
        batch: list[_Waiting[Asked, Answer]] = []
        try:
            with self._turn():
                with self._guard:
                    batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                self._answer_all(batch)
        finally:
            with self._guard:
                batch = batch or [self._waiting.popleft()]  # without a turn only the caller is served: by its error
                following = self._waiting[0] if self._waiting else None
                self._led = following is not None
            for each in batch:
                each.turn.set()
            if following is not None:
                following.turn.set()

    def _answer_all(self, batch: Sequence[_Waiting[Asked, Answer]]) -> None:
        try:
            answers = self._answer([each.asked for each in batch])
            for each, answer in zip(batch, answers, strict=True):
                each.answers.append(answer)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for each in batch:  # one of them is at fault, and the others are not to suffer for it
                each.answers.clear()
                self._answer_all([each])
        except BaseException as error:  # an interrupt ends them all
            for each in batch:
                each.error = error
            raise
