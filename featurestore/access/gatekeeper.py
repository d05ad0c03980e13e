"""Asks who opened a repository and what they may, verb by verb, and writes down what came of it.

The key is looked up anew for each call, in a file that is read again when it changes: one that is
revoked is refused from the next call on. Whoever can read the files and databases themselves does
not come by here; docs/security.md says what holds such a person.
"""

from __future__ import annotations

import os
import platform
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import SecretStr

from featurestore.access import requests
from featurestore.access.audit import audit_of, new_request_id
from featurestore.access.gate import Call, Gate
from featurestore.access.key_ring import KeyRing
from featurestore.access.keys import KeyFile
from featurestore.access.scopes import (
    ALL,
    ANYONE,
    Action,
    Kind,
    Principal,
    Resource,
    authorize,
    authorize_any,
)
from featurestore.errors import AccessDeniedError, FeatureStoreError, UnauthenticatedError
from featurestore.semantics.timeline import format_instant

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.diff import ApplyPlan
    from featurestore.compile.plan import Catalog
    from featurestore.compile.request import FeaturesArgument
    from featurestore.model.settings import AccessSettings
    from featurestore.ports.registry import ProjectState

VARIABLE = "FEATURESTORE_API_KEY"
Needs = Callable[[], Iterable[tuple[Action, Resource]]]


class Gatekeeper(Gate):
    """Stands before one open repository; a `Gate` that asks.

    Args:
        project: The project.
        settings: Where keys and audit are; paths begin at `folder`. Without keys nobody is asked.
        folder: The repository.
        clock: Tells the time.
        key: The key of whoever opens it.
        state: Tells what is applied.

    Raises:
        SettingsError: The file of the keys cannot be read, or the audit has no folder.
        UnauthenticatedError: There is no key, or it is not valid; errors never hold it.
        AccessDeniedError: The key is for other projects.
    """

    def __init__(
        self,
        project: str,
        settings: AccessSettings,
        folder: Path,
        clock: Clock,
        *,
        key: str | None,
        state: Callable[[], ProjectState],
    ) -> None:
        self.project = project
        self.clock = clock
        self.state = state
        self._log = structlog.get_logger("featurestore.access")
        self._key = SecretStr(key.strip()) if key else None
        self._ring: KeyRing | None = None
        if settings.keys_file is not None:
            self._ring = KeyRing(KeyFile(folder / settings.keys_file, clock), clock)
        self._trouble = ""
        self._audit = audit_of(settings.audit_log, folder, "access.audit_log", self._log)
        # Also when a program ends that never closed its store.
        self._close = weakref.finalize(self, self._audit.close) if self._audit else None
        try:
            self.looking("open").begin()
        except FeatureStoreError:
            self.close()
            raise

    @property
    def asks(self) -> bool:
        """Whether anybody is asked: without keys, calls are only written down."""
        return self._ring is not None

    def looking(self, verb: str) -> Call:
        """Let in whoever may do anything in the project."""
        return _AskedCall(self, verb, {}, tuple)

    def reading(
        self, verb: str, action: Action, features: FeaturesArgument, *, filling: bool = False
    ) -> Call:
        """Ask for an action on the service, or on all views that are read."""
        asked = requests.as_list(features)

        def needs() -> Iterable[tuple[Action, Resource]]:
            kind, names = requests.names_of(asked)
            if kind == "view":
                names = frozenset(requests.with_inputs(names, self.state().answering))
            yield from ((action, self._resource(kind, name)) for name in sorted(names))
            if filling:
                views = requests.filled(asked, self.state().answering)
                yield from (("write", self._resource("view", name)) for name in views)

        return _AskedCall(self, verb, requests.told(asked), needs)

    def reading_log(self, verb: str, features: FeaturesArgument | None) -> Call:
        """Ask for `read_offline` on the service, or on the views that are named; see `Call`."""
        if features is None:
            return self.changing(verb, "read_offline", ALL)
        asked = requests.as_list(features)
        kind, names = requests.names_of(asked)

        def needs() -> Iterable[tuple[Action, Resource]]:
            # Names of views that are not there are aliases, or of views that were removed.
            answering = self.state().answering
            known = names if kind == "service" else names & answering.views.keys()
            return [("read_offline", self._resource(kind, name)) for name in sorted(known)]

        return _AskedCall(self, verb, requests.told(asked), needs)

    def changing(
        self, verb: str, action: Action, kind: Kind, names: Sequence[str] | None = None
    ) -> Call:
        """Ask for an action on things by their names, or on all of a kind."""
        wanted = [ALL] if names is None else list(dict.fromkeys(names))
        needs = [(action, self._resource(kind, name)) for name in wanted]
        return _AskedCall(self, verb, requests.told_names(kind, wanted), lambda: needs)

    def principal(self) -> Principal:
        """Return who opened the repository.

        Raises:
            UnauthenticatedError: They have not shown a key, or it is not valid now.
        """
        if self._ring is None:
            return ANYONE
        if self._key is None:
            raise UnauthenticatedError(
                "The repository does not open without an API key.",
                where=f"project '{self.project}'",
                got="no key",
                allowed=f"FeatureStore(folder, api_key=...), or the variable {VARIABLE}",
                hint="Whoever keeps access.keys_file makes one with 'featurestore keys create'.",
            )
        self._ring.refresh()
        self._tell(self._ring.last_error)
        return self._ring.principal(self._key.get_secret_value())

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to the audit, if there is one."""
        if self._audit is not None:
            peer = f"{platform.node()} pid {os.getpid()}"
            at = format_instant(self.clock.now_us())
            lead = {"at": at, "request_id": new_request_id(), "peer": peer}
            self._audit.write({**lead, "project": self.project, **line})

    def close(self) -> None:
        """Write what is left of the audit."""
        if self._close is not None:
            self._close()

    def _resource(self, kind: Kind, name: str) -> Resource:
        return Resource(self.project, kind, name)

    def _tell(self, error: FeatureStoreError | None) -> None:
        trouble = "" if error is None else error.what
        if error is not None and trouble != self._trouble:
            self._log.error("unavailable", part="API keys", where=error.where, error=error.what)
        self._trouble = trouble


class _AskedCall(Call):
    """A call that is asked for.

    Args:
        keeper: Who asks.
        verb: What is called.
        facts: What the audit says of it.
        needs: Tells which actions on what it takes.
    """

    __slots__ = ("_begun", "_facts", "_keeper", "_needs", "_principal", "_verb")

    def __init__(self, keeper: Gatekeeper, verb: str, facts: dict[str, Any], needs: Needs) -> None:
        super().__init__()
        self._keeper = keeper
        self._verb = verb
        self._facts = facts
        self._needs = needs
        self._principal = ANYONE
        self._begun = 0.0

    def begin(self) -> None:
        self._begun = self._keeper.clock.monotonic()
        try:
            self._principal = self._keeper.principal()
            if self._principal.scopes is not None:
                self.who = self._principal.name
                authorize_any(self._principal, self._keeper.project)
                self._permit(self._needs())
        except BaseException as error:
            self.__exit__(type(error), error)
            raise

    def count(self, entity_rows: Any) -> None:
        is_text = isinstance(entity_rows, str | os.PathLike)
        self.rows = len(entity_rows) if hasattr(entity_rows, "__len__") and not is_text else None

    def permit_change(self, plan: ApplyPlan, before: ProjectState, after: Catalog) -> None:
        resources = requests.changed(plan, before, after)
        self._facts["changes"] = [f"{each.kind}/{each.name}" for each in resources]
        self._permit(("apply", each) for each in resources)

    def permit_logged(self, views: Callable[[], Iterable[str]]) -> None:
        if self._principal.scopes is not None and "views" in self._facts:
            project = self._keeper.project
            found = [Resource(project, "view", name) for name in sorted(views())]
            self._permit(("read_offline", each) for each in found)

    def _permit(self, needs: Iterable[tuple[Action, Resource]]) -> None:
        for action, resource in needs:
            authorize(self._principal, action, resource)

    def __exit__(self, *raised: object) -> None:
        error = raised[1] if raised else None
        line: dict[str, Any] = {
            "who": self._principal.name,
            "method": self._verb,
            "status": "OK" if error is None else _status(error),
            "latency_ms": round((self._keeper.clock.monotonic() - self._begun) * 1e3, 3),
            **self._facts,
        }
        if self.rows is not None:
            line["rows"] = self.rows
        if error is not None:
            line["error"] = type(error).__name__
        if isinstance(error, AccessDeniedError | UnauthenticatedError):
            line |= {"reason": error.what, "missing": error.allowed}
        self._keeper.write(line)


def _status(error: object) -> str:
    # As servers call them, so that one search finds both.
    if isinstance(error, AccessDeniedError):
        return "PERMISSION_DENIED"
    return "UNAUTHENTICATED" if isinstance(error, UnauthenticatedError) else "ERROR"
