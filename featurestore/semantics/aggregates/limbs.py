"""Exact sums in columns: numbers as digits of base 2**32, digit by digit one int64 column.

The digit of place p counts 2**(32 p), whatever the column, so columns are added as they are. Digits
are signed and may grow: a sum of up to 2**31 numbers is right without any carry. A double has at
most three digits other than zero, its p-th power at most 3 p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BITS = 32
BASE = 1 << BITS
_MASK = np.int64(BASE - 1)
_HALF = np.int64(0xFFFF)
# 2.0**(32 p) and its inverse are ordinary doubles up to here.
_PLAIN_PLACE = 31
# Rows that stay in the cache while their powers are made; digits that are multiplied at once.
_ROWS = 1 << 14
_SPAN = 6


def split_floats(values: Floats) -> dict[int, Int64s]:
    """Return the digits of finite doubles by place; no place where all are zero.

    Each step takes whole digits off the top, which is exact, and so is what it leaves.
    """
    digits: dict[int, Int64s] = {}
    rest = values
    while len(rest):
        place = _place(float(np.abs(rest).max()))
        if place is None:
            break
        whole = np.trunc(_scaled(rest, -place))
        digits[place] = whole.astype(np.int64)
        rest = rest - _scaled(whole, place)
    return digits


def split_ints(values: Int64s) -> dict[int, Int64s]:
    """Return the digits of whole numbers by place."""
    if not len(values) or (values.max() < BASE and values.min() > -BASE):
        return {0: values} if values.any() else {}
    negative = values < 0
    sizes = np.abs(values).view(np.uint64)
    low = (sizes & np.uint64(BASE - 1)).astype(np.int64)
    high = (sizes >> np.uint64(BITS)).astype(np.int64)
    return {0: np.where(negative, -low, low), 1: np.where(negative, -high, high)}


def split(values: Floats | Int64s) -> dict[int, Int64s]:
    """Return the digits of finite doubles or whole numbers by place."""
    if values.dtype == np.int64:
        return split_ints(values.view(np.int64))
    return split_floats(values.view(np.float64))


def split_powers(values: Floats | Int64s, order: int) -> dict[tuple[int, int], Int64s]:
    """Return the digits of the 2nd and further powers of numbers, by (power, place)."""
    columns: dict[tuple[int, int], Int64s] = {}
    for rows, part in _alike(values):
        digits = split(part)
        if not digits:
            continue
        base = min(digits)
        one = [np.abs(column) for column in _dense(digits, len(part))]
        sign = np.where(part < 0, -1, 1)
        product = one
        for power in range(2, order + 1):
            product = multiply(product, one)
            for place, digit in enumerate(product, power * base):
                if not digit.any():
                    continue
                column = columns.get((power, place))
                if column is None:
                    column = columns[power, place] = np.zeros(len(values), dtype=np.int64)
                column[rows] = digit * sign if power % 2 else digit
    return columns


def multiply(a: Sequence[Int64s], b: Sequence[Int64s]) -> list[Int64s]:
    """Return the product of natural numbers, columns of digits from low to high."""
    left, right = _halves(a), _halves(b)
    sums: list[Int64s | None] = [None] * (2 * (len(a) + len(b)))
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            if x is None or y is None:
                continue
            product = x * y
            former = sums[i + j]
            sums[i + j] = product if former is None else former + product
    zero = np.zeros_like(a[0])
    halves = [zero if column is None else column for column in sums]
    result = []
    carry = zero
    for low, high in zip(halves[::2], halves[1::2], strict=True):
        total = low + ((high & _HALF) << 16) + carry
        result.append(total & _MASK)
        carry = (total >> BITS) + (high >> 16)
    return result


def carry(digits: Sequence[Int64s]) -> tuple[list[Int64s], Int64s]:
    """Return digits from 0 to 2**32 - 1, from low to high, and what is carried out of the top."""
    result = []
    over = np.zeros_like(digits[0])
    for digit in digits:
        total = digit + over
        result.append(total & _MASK)
        over = total >> BITS
    return result, over


def balanced(columns: dict[int, Int64s]) -> dict[int, Int64s]:
    """Return equal numbers with digits from -2**31 to 2**31 - 1, by place."""
    result: dict[int, Int64s] = {}
    left = dict(columns)
    while left:
        place = min(left)
        digit = left.pop(place)
        over = (digit + (BASE >> 1)) >> BITS
        result[place] = digit - (over << BITS)
        if over.any():
            left[place + 1] = left[place + 1] + over if place + 1 in left else over
    return result


def magnitudes(columns: dict[int, Int64s], rows: int) -> tuple[Bools, list[Int64s], int]:
    """Return numbers as naturals: which are negative, the digits, and the place of the lowest."""
    if not columns:
        return np.zeros(rows, dtype=bool), [np.zeros(rows, dtype=np.int64)], 0
    digits = [*_dense(columns, rows), np.zeros(rows, dtype=np.int64)]
    result, over = carry(digits)
    negative = over < 0
    if negative.any():
        result, _ = carry([np.where(negative, -digit, digit) for digit in digits])
    return negative, result, min(columns)


def integers(columns: dict[int, Int64s], rows: int) -> tuple[list[int], int]:
    """Return each number as Python has it, in units of 2**(32 place), and that place."""
    if not columns:
        return [0] * rows, 0
    base = min(columns)
    totals = [0] * rows
    for place, column in columns.items():
        shift = BITS * (place - base)
        totals = [
            total + (digit << shift) for total, digit in zip(totals, column.tolist(), strict=True)
        ]
    return totals, base


def _place(largest: float) -> int | None:
    return None if largest == 0 else (int(np.frexp(largest)[1]) - 1) // BITS


def _scaled(values: Floats, place: int) -> Floats:
    if abs(place) <= _PLAIN_PLACE:
        return values * 2.0 ** (BITS * place)
    return np.ldexp(values, BITS * place)


def _dense(columns: dict[int, Int64s], rows: int) -> list[Int64s]:
    zero = np.zeros(rows, dtype=np.int64)
    return [columns.get(place, zero) for place in range(min(columns), max(columns) + 1)]


def _halves(digits: Sequence[Int64s]) -> list[Int64s | None]:
    halves = [half for digit in digits for half in (digit & _HALF, digit >> 16)]
    return [half if half.any() else None for half in halves]


def _alike(
    values: Floats | Int64s,
) -> Iterator[tuple[slice | Int64s, Floats | Int64s]]:
    """Cut numbers into groups of few rows and of few digits."""
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        part = values[rows]
        if part.dtype == np.int64:
            yield rows, part
            continue
        sizes = np.abs(part)
        largest, smallest = float(sizes.max()), float(sizes[sizes > 0].min(initial=np.inf))
        if largest == 0:
            continue
        if (_place(largest) or 0) - (_place(smallest) or 0) + 3 <= _SPAN:
            yield rows, part
            continue
        tops = np.where(sizes > 0, (np.frexp(sizes)[1] - 1) // BITS, np.iinfo(np.int32).min)
        for top in np.unique(tops[sizes > 0]):
            found = np.flatnonzero(tops == top)
            yield found + start, part[found]
