"""The page itself, read from `page.html`, and the policy that browsers hold it to."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def read_page() -> tuple[bytes, str]:
    """The page, and the policy that lets its own script and style run, by their hashes, and nothing else."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in found)

    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes('script')}",
            f"style-src {hashes('style')}",
            "img-src 'self' data:",  # data: is the page's own icon
            "media-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return text.encode(), policy
