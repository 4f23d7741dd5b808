"""Text for people: names of files and other text from outside as a terminal may see it, and numbers of things."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with a replacement character for each one that a terminal would obey or cannot show.

    These are control characters (escape, newline, tab), the marks that turn the direction of writing, and halves of surrogate
    pairs, which stand for bytes that are no text.
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def are(count: int) -> str:
    """The verb for so many things."""
    return "is" if count == 1 else "are"


def were(count: int) -> str:
    """The same of what is done."""
    return "was" if count == 1 else "were"


def counted(count: int, thing: str) -> str:
    """A number of things, such as "1 file" and "2,000 files". `thing` gets an s where there is not one of it."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
