"""Models and weights of others: from a package, a folder or the hub."""

from .weights import BUNDLED, load_panns, load_text_encoder, text_folder

__all__ = ["BUNDLED", "load_panns", "load_text_encoder", "text_folder"]
