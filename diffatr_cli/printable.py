"""Text from outside, such as names of files, as a terminal may see it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a replacement character for each one that a terminal would obey or cannot show.

    These are control characters (escape, newline, tab), the marks that turn the direction of writing, and halves of surrogate
    pairs, which stand for bytes that are no text.
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
