"""What goes wrong in a request, as an answer of one sentence. Whatever it is, the server goes on."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..corpus.filters import FilterError
from ..corpus.session import NotServed
from ..data.audio import AudioError
from ..errors import DiffATRError
from .answers import json_response
from .uploads import TooLarge


def answer_failures(
    app: FastAPI, tell: Callable[[str], None], failed: Callable[[BaseException], None] = lambda error: None
) -> None:
    """Let an app answer every exception with a sentence; `tell` gets the lines for whoever runs the server, and `failed` what
    nobody expected."""

    @app.exception_handler(DiffATRError)
    def told(request: Request, error: DiffATRError) -> Response:
        status = 400
        if isinstance(error, NotServed):
            status = 404 if error.gone else 403
        elif isinstance(error, TooLarge):
            status = 413
        elif isinstance(error, AudioError):
            status = 422
        elif isinstance(error, FilterError):
            return json_response({"error": error.plain, "at": error.at}, status)
        return json_response({"error": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return json_response({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        text = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
        return json_response({"error": text}, error.status_code)

    app.add_middleware(CatchAll, tell=tell, failed=failed)


class CatchAll:
    """Answers what nobody expected: the sentence goes to the client, the place in the code to the terminal.

    Not only `Exception`: a library's call of `sys.exit`, or a panic in its native code, ends one request, not the server.
    """

    def __init__(self, app: ASGIApp, tell: Callable[[str], None], failed: Callable[[BaseException], None]) -> None:
        self.app, self.tell, self.failed = app, tell, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            pass  # the server stops, and has told the client so
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed(error)
            if began:
                self._report("broke off", scope, error)
                raise  # the connection is closed, from which the client sees that the answer is not whole
            if _no_memory(error):
                answer = json_response({"error": "There is not enough memory for this. Close other programs and try again."}, 503)
            else:
                self._report("failed", scope, error)
                text = f"Unexpected {type(error).__name__}; the terminal shows the place. Please report it."
                answer = json_response({"error": text}, 500)
            await answer(scope, receive, send)

    def _report(self, what: str, scope: Scope, error: BaseException) -> None:
        self.tell(f"{scope['method']} {scope['path']!r} {what}:")
        for part in traceback.format_exception(error):
            for line in part.splitlines():
                self.tell(line)


def _no_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python or in torch, which has no class of its own for that outside a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError")
    )
