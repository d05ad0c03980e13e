"""JSON from strangers, read strictly: what is ambiguous or would change silently is refused.

Refused are keys that stand twice, the words NaN and Infinity, numbers that no float64 holds, text
that is no UTF-8 or has half a surrogate pair, and nesting without measure.
"""

from __future__ import annotations

import json
import math
from typing import Any

from featurestore.errors import RequestError

_SHOWN = 80


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        RequestError: It is none, or not strictly so.
    """
    try:
        found = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
        if b"\\u" in body:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _malformed(
            f"line {error.lineno}, column {error.colno}", error.msg, "a JSON object"
        ) from error
    except UnicodeError as error:
        raise _malformed("the body", "text that is no Unicode", "JSON in UTF-8") from error
    except RecursionError as error:
        raise too_deep() from error
    except RequestError:
        raise
    except ValueError as error:
        # An integer of more digits than Python reads.
        raise _malformed("the body", str(error)[:_SHOWN], "numbers of a type of ours") from error
    if not isinstance(found, dict):
        raise RequestError("The body is no JSON object.", got=shown(found))
    return found


def too_deep() -> RequestError:
    """Return the error of a request that is nested too deeply."""
    return RequestError("The request is nested too deeply.", where="the body")


def shown(value: Any) -> str:
    """Return a value as JSON, cut to what an error may show."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError("A key stands twice in one object.", where="the body", got=shown(twice))
    return found


def _constant(word: str) -> Any:
    raise RequestError(
        "JSON has no such number.",
        where="the body",
        got=word,
        allowed='in floats, the texts "NaN", "Infinity" and "-Infinity"; null for no value',
    )


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestError(
            "A number is too large for any type.", where="the body", got=text[:_SHOWN]
        )
    return number


def _malformed(where: str, got: str, allowed: str) -> RequestError:
    return RequestError("The body is no JSON.", where=where, got=got, allowed=allowed)
