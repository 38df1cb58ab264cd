"""Numbers in text that a person typed: decimal, in ASCII digits, of bounded length, within a range.

``int`` and ``float`` take more: ``1_0``, digits of other scripts, ``nan``, ``inf``; and thousands of digits are an
error whose message does not name the range.
"""

import re

MOST_INT64 = (1 << 63) - 1
_WHOLE = re.compile(r"[-+]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[-+]?([0-9]{1,20}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][-+]?[0-9]{1,3})?")


def whole(text: str, least: int, most: int) -> int | None:
    """Return text as an integer from ``least`` to ``most``; None for any other."""
    if not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if least <= number <= most else None


def decimal(text: str, least: float, most: float) -> float | None:
    """Return text as a number from ``least`` to ``most``, both finite; None for any other."""
    if not _DECIMAL.fullmatch(text):
        return None
    number = float(text)
    return number if least <= number <= most else None
