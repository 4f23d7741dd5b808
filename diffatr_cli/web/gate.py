"""Who may ask the page's server, and what browsers may do with its answers."""

from __future__ import annotations

import hashlib
import hmac
import re

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import json_response


class Gate:
    """Turns away who should not ask, and gives every answer the headers that keep browsers from doing more with it."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None, token: str | None, policy: str) -> None:
        self.app, self.hosts, self.token = app, hosts, token
        self.headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",  # the address may hold the token
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        # Browsers do not keep the cookies of two ports of a host apart, so two servers need two names.
        self.cookie = "diffatr-" + hashlib.sha256((token or "").encode()).hexdigest()[:8]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        cookie: str | None = None

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                if cookie is not None:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        if refusal := self._stranger(request.headers):
            await json_response({"error": refusal}, 403)(scope, receive, guarded)
            return
        # Without the key it is told whether the service is well, and no more: whoever watches over it may have no key.
        keyless = self.token is not None and not (self._same(request.cookies.get(self.cookie)) or self._has_key(request.headers))
        scope["diffatr.keyless"] = keyless
        if keyless and not (scope["path"] == "/health" and request.method == "GET"):
            if not (scope["path"] == "/" and request.method == "GET" and self._same(request.query_params.get("token"))):
                text = "This page needs its key: open the whole address that `diffatr serve` printed."
                await json_response({"error": text}, 401)(scope, receive, guarded)
                return
            # Not by a redirect: after one, a link in a mail would come without the strict cookie that it has just got.
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        await self.app(scope, receive, guarded)

    def _same(self, offered: str | None) -> bool:
        return hmac.compare_digest((offered or "").encode(), (self.token or "").encode())

    def _has_key(self, headers: Headers) -> bool:
        """Whether a program, which keeps no cookies, brought the key. No page can let a browser send this header elsewhere."""
        kind, _, key = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._same(key.strip())

    def _stranger(self, headers: Headers) -> str | None:
        """Why a request comes from another page than this one, or for another name than this server's."""
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            return "This server answers to its own name only. Open the address that `diffatr serve` printed."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "Other pages may not ask this one."
        # Sounds and pictures are fetched without an origin; browsers say where such a request comes from in this header.
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return "Other pages may not ask this one."
        return None


def _hostname(host: str) -> str:
    """A `Host` header without its port, in lower case."""
    return re.sub(r":\d*$", "", host).lower()
