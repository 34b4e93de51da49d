"""Names of objects: a kind, then 26 characters that sort by time of creation."""

from __future__ import annotations

import re
import secrets

__all__ = ["is_id", "new_id"]

# Crockford's base 32: digits and letters without i, l, o and u.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26
RANDOM_BITS = 80


def new_id(kind: str, now: float) -> str:
    """Draw a name: 48 bits of milliseconds and 80 random bits, as ULIDs have them.

    Args:
        kind: What it names, such as `job`.
        now: Unix time, seconds.

    Returns:
        `kind_` and 26 characters of `ALPHABET`.
    """
    number = (int(now * 1000) % 2**48) << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return f"{kind}_{''.join(reversed(digits))}"


def is_id(kind: str, text: str) -> bool:
    """Tell whether a text could be the name of such an object; what is not never meets a query."""
    return re.fullmatch(rf"{kind}_[{ALPHABET}]{{{LENGTH}}}", text) is not None
