"""DiffATR: find sounds by words and words by sounds, with diffusion-based audio-text retrieval."""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing, which takes its time: nothing stands between a command's start and Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from .api import Model, Ranked, load_model

__version__ = "0.1.0"
__all__ = ["Model", "Ranked", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """The public names, loaded when they are first asked for: `import diffatr_cli` is instant."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
