"""Text from a machine that may be hostile, made safe to show. No I/O."""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS…
    r"|\x1b[ -/]*[0-~]?"
)
_BLANKS = re.compile(r"[\s\x85\u2028\u2029]+")


def clean(text: str | bytes, limit: int = 400) -> str:
    """One printable line of at most `limit` characters: nothing that steers a terminal.

    >>> clean(b"\\x1b]0;owned\\x07 hello\\x1b[2J\\r\\nthere\\x00")
    'hello there'
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    # Cut first: a hostile megabyte is not worth a regular expression.
    text = _BLANKS.sub(" ", _ESCAPES.sub("", text[: 8 * limit]))
    text = "".join(char for char in text if char.isprintable()).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
