"""Exact numbers to doubles, rounded once: to nearest, ties to even, as IEEE 754 says.

A few numbers are rounded one by one by Python's own integers, many in columns of digits. Both give
the same doubles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.semantics.aggregates.limbs import BITS

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Below this exponent doubles have fewer bits, so that scaling them could round a second time.
LEAST_EXPONENT = -1020
_WINDOW = 64
# Digits behind the point that a quotient needs for its first 64 bits.
_MORE_DIGITS = 3


def ratio(numerator: int, denominator: int, exponent: int = 0) -> float:
    """Return numerator / denominator * 2**exponent as a double; infinite where it is too large.

    >>> ratio(1, 3, 0), ratio(1, 1, 1024)
    (0.3333333333333333, inf)
    """
    if exponent >= 0:
        numerator <<= exponent
    else:
        denominator <<= -exponent
    try:
        # Python divides integers of any size with one rounding.
        return numerator / denominator
    except OverflowError:
        return float("inf") if numerator > 0 else float("-inf")


def round_naturals(
    digits: Sequence[Int64s], base: int, rest: Bools | None = None
) -> tuple[Floats, Int64s]:
    """Return naturals as doubles, and the exponents of their highest bits.

    Args:
        digits: Digits from 0 to 2**32 - 1 in columns, from low to high.
        base: The place of the lowest.
        rest: Whether something more follows below the lowest digit.

    Returns:
        The doubles, which are right where the exponent is `LEAST_EXPONENT` or more, and below it
        where the number has no bits below 2**-1074. The exponent of zero is 0.
    """
    table = np.stack([np.zeros_like(digits[0])] * 2 + list(digits)).view(np.uint64)
    columns = np.arange(table.shape[1])
    filled = table != 0
    top = np.maximum(len(table) - 1 - filled[::-1].argmax(axis=0), 2)
    high, middle, low = (table[top - step, columns] for step in range(3))
    below = (filled.argmax(axis=0) < top - 2) & (high != 0)
    if rest is not None:
        below |= rest
    size = np.frexp(high.astype(np.float64))[1].astype(np.uint64)
    bits = np.uint64(BITS)
    # A shift by all 64 bits is not defined; it happens for zero alone.
    first = high << np.minimum(np.uint64(_WINDOW) - size, np.uint64(_WINDOW - 1))
    window = first | (middle << (bits - size)) | (low >> size)
    below |= (low & ((np.uint64(1) << size) - np.uint64(1))) != 0
    # What follows decides ties only, so one bit far below the last one that is kept stands for it.
    window |= below
    exponents = np.where(high == 0, 0, BITS * (top - 2 + base) + size.astype(np.int64))
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(window.astype(np.float64), exponents - _WINDOW), exponents


def divide(digits: Sequence[Int64s], divisors: Int64s) -> tuple[list[Int64s], Bools]:
    """Return quotients of naturals by numbers from 1 to 2**31 - 1.

    Returns:
        Digits from low to high, three more at the low end than were given; and whether anything is
        left below them.
    """
    zero = np.zeros_like(digits[0])
    left = zero
    quotient = []
    for digit in [*reversed(digits), *[zero] * _MORE_DIGITS]:
        total = (left << BITS) + digit
        part = total // divisors
        left = total - part * divisors
        quotient.append(part)
    return quotient[::-1], left != 0


def divided_base(base: int) -> int:
    """Return the place of the lowest digit of quotients of naturals whose lowest place this was."""
    return base - _MORE_DIGITS
