"""Words from outside, of a file or a person, as messages show them."""

from __future__ import annotations

MOST = 160  # characters


def shown(text: object, most: int = MOST) -> str:
    """A text in one piece of a message: printable, and of a long one the beginning.

    Example:
        >>> shown("a man"), shown("a\\x1b[2J"), len(shown("a" * 1000))
        ('a man', 'a\ufffd[2J', 163)
    """
    words = str(text)
    kept = "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in words[:most])
    return kept if len(words) <= most else f"{kept}..."


def in_quotes(text: str) -> str:
    """As :func:`shown`, between quotation marks and with its line ends as Python writes them.

    Example:
        >>> in_quotes("a\\nb")
        "'a\\\\nb'"
    """
    return shown(repr(text[:MOST])) + ("..." if len(text) > MOST else "")
