"""Fingerprints: 16 hex digits that tell whether two definitions are the same.

All are BLAKE2b over canonical JSON, and equal on every machine. Three questions, three
fingerprints: did anything declared change (`definition_fingerprint`), do the rows of the table
change (`table_fingerprint`), did the code of an on-demand function change
(`compile.code.code_fingerprint`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from featurestore.compile.plan import EntityPlan, OnDemandPlan, ServicePlan, SourcePlan, ViewPlan

DIGEST_BYTES = 8
# Raise it when the same definition begins to give other rows.
_ROWS_VERSION = 1


def digest(value: Any) -> str:
    """Return 16 hex digits over plain data: dicts, lists, texts, integers, booleans and None.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def definition_fingerprint(plan: EntityPlan | ViewPlan | OnDemandPlan | ServicePlan) -> str:
    """Return the fingerprint of all that is declared, descriptions and tags included."""
    return digest([type(plan).__name__, plan.model_dump(mode="json", exclude={"fingerprint"})])


def table_fingerprint(view: ViewPlan) -> str:
    """Return the fingerprint of what decides a view's rows, and of nothing else.

    The names of the view, its entities and its source do not count, nor do ttl and descriptions.
    The order of features does: packed rows follow it.
    """
    return digest(
        {
            "version": _ROWS_VERSION,
            "join_keys": [[key.name, key.dtype] for key in view.join_keys],
            "features": [[f.name, f.dtype, f.expression] for f in view.features],
            "source": _source(view.source),
            "where": view.where,
        }
    )


def _source(source: SourcePlan) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude={"name"})
