"""Results of moments: exact rational numbers of the sums, rounded once to doubles (law W5).

    sum       S1                           mean      S1 / n
    variance  m2 = (n S2 - S1**2) / n**2   stddev    sqrt(m2)
    skew      m3 / (m2 * sqrt(m2))         kurtosis  m4 / (m2 * m2) - 3

with population moments: skew needs three values, kurtosis four, and both some variance.
m2, m3 and m4 are rounded once each, and then these IEEE operations follow, in the order as written.
An infinity makes sums and means infinite, or null where both signs are there, and all else null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import DataError
from featurestore.semantics.aggregates import limbs
from featurestore.semantics.aggregates.rounding import (
    LEAST_EXPONENT,
    divide,
    divided_base,
    ratio,
    round_naturals,
)
from featurestore.semantics.aggregates.spec import AggregateSpec

if TYPE_CHECKING:
    from featurestore.semantics.aggregates.moments import MomentStates

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Up to so many states Python's integers are faster than columns of digits.
_FEW = 40
# Sums over more places than that come from numbers of very different size: one by one, too.
_SPAN = 12
_MOST_COUNT = (1 << 31) - 1
_LEAST = -(1 << 63)


def finalize(spec: AggregateSpec, states: MomentStates) -> pa.Array:
    """Return the result of each state."""
    count = states.row((0, 0))
    if spec.function == "count":
        return pa.array(count)
    if spec.result.scalar == "int64":
        return _whole_sums(states, count)
    if spec.function in {"sum", "mean"}:
        values = _sums(states, count) if spec.function == "sum" else _means(states, count)
        absent = count == 0
        values, absent = _with_infinities(states, values, absent)
    elif spec.function in {"variance", "stddev"}:
        values, absent = _variances(states, count), count == 0
        if spec.function == "stddev":
            values = np.sqrt(values)
    else:
        values = _shapes(states, count, 3 if spec.function == "skew" else 4)
        absent = np.isnan(values)
    if spec.function not in {"sum", "mean"}:
        absent |= (states.row((0, 1)) | states.row((0, 2))) != 0
    return pa.array(values, mask=absent if absent.any() else None)


def _whole_sums(states: MomentStates, count: Int64s) -> pa.Array:
    negative, naturals, base = limbs.magnitudes(states.digits(1), len(states))
    digits = dict(enumerate(naturals, base))
    zero = np.zeros_like(count)
    totals = (digits.pop(1, zero) << limbs.BITS) | digits.pop(0, zero)
    # The size of the least integer, 2**63, comes out as the least integer itself.
    is_outside = (totals < 0) & ~(negative & (totals == _LEAST))
    for digit in digits.values():
        is_outside |= digit != 0
    if is_outside.any():
        place = int(is_outside.argmax())
        total, unit = _integers(states.take(np.array([place])), 1)
        raise DataError(
            "A sum of whole numbers does not fit 64 bits.",
            got=str(total[0] << limbs.BITS * unit),
            allowed=f"from {_LEAST} to {-_LEAST - 1}",
            hint="Sum the column as float64, by an expression such as CAST(x AS DOUBLE).",
        )
    absent = count == 0
    return pa.array(np.where(negative, -totals, totals), mask=absent if absent.any() else None)


def _is_small(states: MomentStates, count: Int64s) -> bool:
    places = [place for power, place in states.labels if power]
    if len(states) <= _FEW or (bool(places) and max(places) - min(places) > _SPAN):
        return True
    return int(count.max()) > _MOST_COUNT


def _integers(states: MomentStates, power: int) -> tuple[list[int], int]:
    return limbs.integers(states.digits(power), len(states))


def _sums(states: MomentStates, count: Int64s) -> Floats:
    if _is_small(states, count):
        totals, base = _integers(states, 1)
        return _floats(ratio(total, 1, limbs.BITS * base) for total in totals)
    negative, naturals, base = limbs.magnitudes(states.digits(1), len(states))
    # A sum of doubles is a multiple of the least one, so nothing is lost where it is small.
    values, _ = round_naturals(naturals, base)
    return np.where(negative, -values, values)


def _means(states: MomentStates, count: Int64s) -> Floats:
    if _is_small(states, count):
        totals, base = _integers(states, 1)
        pairs = zip(totals, count.tolist(), strict=True)
        return _floats(ratio(total, n or 1, limbs.BITS * base) for total, n in pairs)
    negative, naturals, base = limbs.magnitudes(states.digits(1), len(states))
    quotient, rest = divide(naturals, np.maximum(count, 1))
    values, exponents = round_naturals(quotient, divided_base(base), rest)
    tiny = np.flatnonzero(exponents < LEAST_EXPONENT)
    values = np.where(negative, -values, values)
    return _with_exact(values, tiny, _means, states, count)


def _with_exact(
    values: Floats, rows: Int64s, means: Any, states: MomentStates, count: Int64s
) -> Floats:
    """Put exact values in place of those of some rows, a few at a time."""
    for start in range(0, len(rows), _FEW):
        some = rows[start : start + _FEW]
        values[some] = means(states.take(some), count[some])
    return values


def _with_infinities(states: MomentStates, values: Floats, absent: Bools) -> tuple[Floats, Bools]:
    up, down = states.row((0, 1)) != 0, states.row((0, 2)) != 0
    if not (up.any() or down.any()):
        return values, absent
    values = np.where(up, np.inf, np.where(down, -np.inf, values))
    return values, absent | (up & down)


def _variances(states: MomentStates, count: Int64s) -> Floats:
    if _is_small(states, count):
        sums, unit = _sums_of_powers(states, 2)
        rows = zip(count.tolist(), *sums, strict=True)
        return _floats(ratio(n * s2 - s1 * s1, n * n or 1, 2 * unit) for n, s1, s2 in rows)
    _, first, base = limbs.magnitudes(states.digits(1), len(states))
    _, second, base2 = limbs.magnitudes(states.digits(2), len(states))
    square, places = limbs.multiply(first, first), 2 * base
    scaled, over = limbs.carry([digit * count for digit in second])
    low = min(places, base2)
    high = max(places + len(square), base2 + len(scaled) + 1)
    difference = [np.zeros_like(count) for _ in range(low, high)]
    for at, digit in enumerate([*scaled, over], base2 - low):
        difference[at] = difference[at] + digit
    for at, digit in enumerate(square, places - low):
        difference[at] = difference[at] - digit
    naturals, _ = limbs.carry(difference)
    divisors = np.maximum(count, 1)
    once, rest = divide(naturals, divisors)
    twice, rest2 = divide(once, divisors)
    base = divided_base(divided_base(low))
    values, exponents = round_naturals(twice, base, rest | rest2)
    tiny = np.flatnonzero(exponents < LEAST_EXPONENT)
    return _with_exact(values, tiny, _variances, states, count)


def _sums_of_powers(states: MomentStates, order: int) -> tuple[list[list[int]], int]:
    """Return the sums of each power p as integers in units of 2**(32 p unit), and the unit."""
    found = [_integers(states, power) for power in range(1, order + 1)]
    unit = min(base // power for power, (_, base) in enumerate(found, 1))
    shifts = [limbs.BITS * (base - power * unit) for power, (_, base) in enumerate(found, 1)]
    sums = [
        [total << shift for total in totals]
        for (totals, _), shift in zip(found, shifts, strict=True)
    ]
    return sums, limbs.BITS * unit


def _shapes(states: MomentStates, count: Int64s, order: int) -> Floats:
    """Return skews (order 3) or kurtoses (order 4), NaN where there is none."""
    sums, _ = _sums_of_powers(states, order)
    rows = zip(count.tolist(), *sums, strict=True)
    return _floats(_shape(*row) if row[0] >= order else math.nan for row in rows)


def _shape(n: int, s1: int, s2: int, s3: int, s4: int | None = None) -> float:
    """Return the skew of integers by their sums of powers, or the excess kurtosis.

    Both are ratios that no scale changes. The moments are scaled by a power of two, so that m2 is
    near 1 and nothing overflows on the way.
    """
    spread = n * s2 - s1 * s1
    if not spread:
        return math.nan
    scale = (spread.bit_length() - 2 * n.bit_length()) // 2
    m2 = ratio(spread, n**2, -2 * scale)
    if s4 is None:
        m3 = ratio(n * n * s3 - 3 * n * s1 * s2 + 2 * s1**3, n**3, -3 * scale)
        return m3 / (m2 * math.sqrt(m2))
    numerator = n**3 * s4 - 4 * n * n * s1 * s3 + 6 * n * s1 * s1 * s2 - 3 * s1**4
    return ratio(numerator, n**4, -4 * scale) / (m2 * m2) - 3.0


def _floats(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
