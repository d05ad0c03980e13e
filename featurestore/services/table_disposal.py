"""Deletes a view's table with everything that belongs to it (law M7): ledger, files, online values.

The ledger goes first: whoever takes the definition up again finds a table of which nothing is known
to be done, and so builds it anew. Every step may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from featurestore.compile.plan import table_id
from featurestore.semantics.keys import namespace

if TYPE_CHECKING:
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import ProjectState, Registry, Version
    from featurestore.ports.tables import Tables


class TableDisposal:
    """Deletes tables of one project.

    Args:
        project: The project's name.
        registry: Holds the ledgers.
        tables: Holds the files.
        online: Holds the values.
    """

    def __init__(
        self, project: str, registry: Registry, tables: Tables, online: OnlineStore
    ) -> None:
        self._project = project
        self._registry = registry
        self._tables = tables
        self._online = online

    def has_files(self, plan: ViewPlan) -> bool:
        """Whether the table of a plan holds rows."""
        return bool(self._tables.snapshot(table_id(self._project, plan)).files)

    def delete(self, view: str, table_fingerprint: str) -> str:
        """Delete one table; return its id."""
        name = f"{self._project}/{view}/{table_fingerprint}"
        self._registry.delete_ledger(self._project, view, table_fingerprint)
        self._tables.drop(name)
        self._online.delete_namespace(namespace(self._project, view, table_fingerprint))
        return name

    def delete_all(self, state: ProjectState, versions: Iterable[Version]) -> tuple[str, ...]:
        """Delete every table that the project ever had; return their ids.

        Args:
            state: The project's state.
            versions: All versions of its feature views.
        """
        plans = (*state.catalog.views.values(), *state.serving.values())
        known = {(plan.name, plan.table_fingerprint) for plan in plans}
        known |= {(table.view, table.table_fingerprint) for table in state.retired}
        known |= {(v.name, json.loads(v.body)["table_fingerprint"]) for v in versions}
        return tuple(self.delete(view, fingerprint) for view, fingerprint in sorted(known))
