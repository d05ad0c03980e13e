"""What every registry decides alike: versions of a catalog, ids of listings, words of a lost race.

Pure functions, so that one registry gives the answers of another. How things are kept is the
adapters' business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from featurestore.compile.plan import Catalog
from featurestore.errors import ConflictError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Change, ProjectState, Version
from featurestore.semantics.timeline import format_instant

_FINGERPRINT_BYTES = 8
_SNAPSHOT_BYTES = 16


def definition_versions(state: ProjectState, applied_by: str, applied_at_us: int) -> list[Version]:
    """Return every definition of a state as a version, in the catalog's order.

    A plan without a fingerprint of its own gets 16 hex digits over its body.

    Args:
        state: The state that brings them in, under its new revision.
        applied_by: Who applies it.
        applied_at_us: When, in microseconds since the epoch.
    """
    return [
        Version(
            kind=kind,
            name=name,
            fingerprint=fingerprint or _digest(body.encode(), _FINGERPRINT_BYTES),
            body=body,
            revision=state.revision,
            applied_by=applied_by,
            applied_at_us=applied_at_us,
        )
        for kind, name, fingerprint, body in _definitions(state.catalog)
    ]


def _definitions(catalog: Catalog) -> Iterator[tuple[str, str, str, str]]:
    for entity in catalog.entities.values():
        yield "entity", entity.name, "", entity.model_dump_json()
    for view in catalog.views.values():
        yield "feature_view", view.name, view.fingerprint, view.model_dump_json()
    for derived in catalog.on_demand.values():
        yield "on_demand_feature_view", derived.name, derived.fingerprint, derived.model_dump_json()
    for service in catalog.services.values():
        yield "feature_service", service.name, service.fingerprint, service.model_dump_json()


def _digest(content: bytes, size: int) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def listing_tokens(files: Iterable[SourceFile]) -> dict[str, str]:
    """Return {path: token} sorted by path."""
    return dict(sorted((file.path, file.token) for file in files))


def listing_id(tokens: Mapping[str, str]) -> str:
    """Return the id of a listing: 32 hex digits over its sorted paths and tokens.

    Each text goes in with its length, so that no two listings share bytes. Paths that are no valid
    UTF-8 are told apart as well.
    """
    digest = hashlib.blake2b(digest_size=_SNAPSHOT_BYTES)
    for pair in sorted(tokens.items()):
        for text in pair:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)
    return digest.hexdigest()


def publish_conflict(
    project: str, expected: int, found: int, winner: Change | None, where: str
) -> ConflictError:
    """Return the error of a publisher that came second.

    Args:
        project: The project.
        expected: The revision that the publisher had read.
        found: The revision that the registry is at, 0 when the project is gone.
        winner: The change that followed `expected`, None when there is none.
        where: The registry, without secrets.
    """
    if winner is None:
        got = f"revision {found}" if found else "no such project; it was deleted or never applied"
    else:
        got = (
            f"revision {winner.revision} by '{winner.applied_by}' at"
            f" {format_instant(winner.applied_at_us)}: {winner.summary}"
        )
        if found > winner.revision:
            got += f" (it is at revision {found} by now)"
    return ConflictError(
        f"Project '{project}' was changed by somebody else first; nothing was applied.",
        where=where,
        got=got,
        allowed=f"a change of revision {found}; this one was made from revision {expected}",
        hint="Run 'featurestore plan' again, look at it and apply it.",
    )


def ledger_conflict(
    view: str, table_fingerprint: str, expected: int, found: int, where: str
) -> ConflictError:
    """Return the error of a run whose ledger was written by another run meanwhile.

    Args:
        view: The view.
        table_fingerprint: Its table.
        expected: The version that the run had read.
        found: The version in the registry, 0 when there is none.
        where: The registry, without secrets.
    """
    return ConflictError(
        f"Another run wrote the ledger of '{view}' first; this run recorded nothing.",
        where=f"{where}, table {table_fingerprint}",
        got=f"version {found}" if found else "no ledger; it was deleted or never written",
        allowed=f"version {expected}",
        hint="Run the job again: what the other run has done is not repeated.",
    )
