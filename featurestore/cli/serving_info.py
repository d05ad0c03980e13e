"""What a feature server serves and how fresh it is, as `featurestore status --server` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.cli.output import Block, Cell, Facts, Output, Table, duration

if TYPE_CHECKING:
    from datetime import datetime

    from featurestore.serving.info import ServedView, ServingInfo


def serving_output(address: str, info: ServingInfo) -> Output:
    """Return what a server says of itself."""
    asked = _ago(info.freshness_as_of, info.now) or "never"
    facts = Facts(
        [
            ("server", address),
            ("version", info.server_version),
            ("project", info.project),
            ("revision", str(info.revision)),
            ("services", ", ".join(info.services) or "(none)"),
            ("registry asked", asked),
        ]
    )
    columns = (
        "view", "data until", "materialized", "newest served", "fingerprint",
        "~join keys", "~features",
    )  # fmt: skip
    rows = [_row(name, view, info.now) for name, view in info.views.items()]
    blocks: list[Block] = [facts, Table(columns, rows)]
    for name, view in info.views.items():
        if view.materialized_positions:
            shown = (f"{part} {at}" for part, at in view.materialized_positions.items())
            blocks.append(Cell(f"{name}: materialized from its stream up to {', '.join(shown)}."))
    return Output(_data(address, info), blocks)


def _row(name: str, view: ServedView, now: datetime | None) -> list[str]:
    return [
        name,
        _ago(view.materialized_until, now),
        _ago(view.materialized_at, now),
        _ago(view.newest_served_event, now),
        view.fingerprint,
        "on-demand" if view.on_demand else ", ".join(view.join_keys) or "(global)",
        ", ".join(view.features),
    ]


def _data(address: str, info: ServingInfo) -> dict[str, Any]:
    return {
        "address": address,
        "server_version": info.server_version,
        "project": info.project,
        "revision": info.revision,
        "now": info.now,
        "freshness_as_of": info.freshness_as_of,
        "views": {
            name: {
                "fingerprint": view.fingerprint,
                "on_demand": view.on_demand,
                "join_keys": view.join_keys,
                "features": view.features,
                "request": view.request,
                "materialized_until": view.materialized_until,
                "materialized_at": view.materialized_at,
                "newest_served_event": view.newest_served_event,
                "materialized_positions": view.materialized_positions,
            }
            for name, view in info.views.items()
        },
        "services": info.services,
    }


def _ago(instant: datetime | None, now: datetime | None) -> str:
    """Return how long ago an instant was by the server's clock, "" where it is not known."""
    if instant is None or now is None:
        return ""
    seconds = (now - instant).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"
