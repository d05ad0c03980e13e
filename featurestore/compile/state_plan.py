"""What an aggregated view's plan means for its online states and for reading them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from featurestore.compile.aggregates import spec_of
from featurestore.compile.plan import AggregatePlan, ViewPlan
from featurestore.semantics.rows import FINGERPRINT_BYTES, RowSchema
from featurestore.semantics.states.schema import Family, StateSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.semantics.windowing import WindowFeature

# Raise it when states are written in another way: former ones are then refused (law O4).
_LAYOUT_VERSION = 1


def state_schema(view: ViewPlan) -> StateSchema:
    """Return the layout of the states of an aggregated view."""
    families = [Family(spec_of(view, p).state, p.input, p.by) for p in view.aggregates]
    reaches = [plan.window.reach for plan in view.aggregates]
    known = [reach for reach in reaches if reach is not None]
    digest = hashlib.blake2b(
        f"{view.table_fingerprint}/{_LAYOUT_VERSION}".encode(), digest_size=FINGERPRINT_BYTES
    ).digest()
    return StateSchema(
        view=view.name,
        fingerprint=digest,
        inputs=RowSchema(
            tuple(each.name for each in view.inputs), tuple(each.type for each in view.inputs), b""
        ),
        families=tuple(dict.fromkeys(families)),
        reach=max(known) if len(known) == len(reaches) else None,
    )


def window_features(view: ViewPlan, plans: Sequence[AggregatePlan]) -> list[WindowFeature]:
    """Return aggregates of a view as they are computed."""
    from featurestore.semantics.windowing import WindowFeature

    return [WindowFeature(spec_of(view, p), p.window, p.input, p.by) for p in plans]
