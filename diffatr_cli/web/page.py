"""The page itself, put together of the files in `look`, and the policy that browsers hold it to.

It is one answer with its style and its script inside, so that a key, a version or a cache never fits one part and not another.
`page.html` names the files of each, a line each; a script is one, in which all of them see one another's names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def read_page() -> tuple[bytes, str]:
    """The page, and the policy that lets its own script and style run, by their hashes, and nothing else."""
    text = re.sub(r"^[\w-]+\.(?:css|js)\n", lambda name: _read(name[0].strip()), _read("page.html"), flags=re.MULTILINE)

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


def _read(name: str) -> str:
    return files(__package__).joinpath("look", name).read_text(encoding="utf-8")
