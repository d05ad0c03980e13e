"""Who makes a call, and whether it may: for gRPC and for any other front.

A caller shows an API key (`x-api-key`, or `authorization: Bearer fs_...`) or a token
(`authorization: Bearer ...`); exactly one. Asking for a service needs the scope of the service;
asking for features needs the scope of every view that is read, those behind on-demand views too.
Where neither keys nor tokens are set up, everybody may do everything.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from featurestore.access.keys import PREFIX
from featurestore.access.requests import names_of, with_inputs
from featurestore.access.scopes import ANYONE, Principal, Resource, authorize
from featurestore.compile.request import FeaturesArgument, RequestPlan, resolve
from featurestore.errors import (
    FeatureNotFoundError,
    FeatureStoreError,
    UnauthenticatedError,
)
from featurestore.ports.registry import ProjectState
from featurestore.serving.security.headers import API_KEY, AUTHORIZATION

if TYPE_CHECKING:
    from featurestore.access.key_ring import KeyRing
    from featurestore.serving.security.tokens import TokenChecker

_REMEMBERED = 4_096
_NEEDED = f"'{API_KEY}: KEY', or '{AUTHORIZATION}: Bearer KEY-OR-TOKEN'"


class Access:
    """Decides who may call.

    Args:
        project: The project that is served.
        keys: Knows API keys; None takes none.
        tokens: Knows tokens; None takes none.
    """

    def __init__(
        self, project: str, keys: KeyRing | None = None, tokens: TokenChecker | None = None
    ) -> None:
        self.project = project
        self._keys = keys
        self._tokens = tokens
        self.restricted = keys is not None or tokens is not None
        self._allowed: tuple[ProjectState | None, set[Hashable]] = (None, set())

    def principal(self, api_key: str | None, authorization: str | None) -> Principal:
        """Return who makes a call.

        Args:
            api_key: What the caller sent as `x-api-key`.
            authorization: What it sent as `authorization`.

        Raises:
            UnauthenticatedError: It does not say, or what it says is not valid.
            UnavailableError: That cannot be told just now.
        """
        if not self.restricted:
            return ANYONE
        if api_key is not None and authorization is not None:
            raise UnauthenticatedError(
                "The call shows two credentials.",
                got=f"{API_KEY} and {AUTHORIZATION}",
                allowed="one of them",
            )
        shown = api_key if authorization is None else _bearer(authorization)
        if not shown:
            raise UnauthenticatedError(
                "The call does not say who makes it.", got="no credentials", allowed=_NEEDED
            )
        if self._keys is not None and (api_key is not None or shown.startswith(PREFIX)):
            return self._keys.principal(shown)
        if self._tokens is not None and api_key is None:
            return self._tokens.principal(shown)
        kind = "tokens" if self._keys is not None else "API keys"
        raise UnauthenticatedError(
            f"This server takes no {kind}.", hint="Show what it takes: a key, or a token."
        )

    def permit_features(
        self, principal: Principal, features: FeaturesArgument, state: ProjectState
    ) -> None:
        """Return if a principal may read features online.

        Raises:
            AccessDeniedError: It may not read one of them; names the scope that is missing.
        """
        if principal.scopes is None:
            return
        held, allowed = self._allowed
        if held is not state:
            allowed = set()
            self._allowed = (state, allowed)
        kind, names = names_of(features)
        known = (principal.scopes, kind, names)
        if known in allowed:
            return
        catalog = state.answering
        for name in names if kind == "service" else with_inputs(names, catalog):
            authorize(principal, "read_online", Resource(self.project, kind, name))
        # Names that are nobody's are not remembered: a caller could make up any number of them.
        if all(
            n in catalog.views or n in catalog.on_demand or n in catalog.services for n in names
        ):
            if len(allowed) >= _REMEMBERED:
                allowed.clear()
            allowed.add(known)

    def permit_push(self, principal: Principal, source: str) -> None:
        """Return if a principal may push events to a source.

        Raises:
            AccessDeniedError: It may not.
        """
        authorize(principal, "write", Resource(self.project, "source", source))

    def discreet(self, principal: Principal, error: FeatureStoreError) -> None:
        """Take out of an error what tells of definitions that a principal may not see."""
        if isinstance(error, FeatureNotFoundError) and principal.scopes is not None:
            error.allowed = error.hint = None

    def visible(self, principal: Principal, state: ProjectState) -> Visible | None:
        """Return what of a project a principal may see; None is all of it."""
        if principal.scopes is None:
            return None
        return Visible.of(self.project, principal, state)


class Visible:
    """The part of a project that a principal may see.

    Attributes:
        views: {view: its features that may be read, None for all of them}.
        services: The services that may be read.
    """

    def __init__(self) -> None:
        self.views: dict[str, set[str] | None] = {}
        self.services: set[str] = set()

    @classmethod
    def of(cls, project: str, principal: Principal, state: ProjectState) -> Visible:
        """Return what a principal may see: what it may read, alone or as a part of a service."""
        found, catalog = cls(), state.answering
        for name in catalog.services:
            if principal.may("read_online", Resource(project, "service", name)):
                found.services.add(name)
                found._add_parts(name, state)
        for name in (*state.serving, *catalog.on_demand):
            if principal.may("read_online", Resource(project, "view", name)):
                found.views[name] = None
        return found

    def _add_parts(self, service: str, state: ProjectState) -> None:
        try:
            plan: RequestPlan = resolve(
                state.answering, state.serving, service, full_feature_names=True
            )
        except FeatureStoreError:
            # It cannot be answered now; there is nothing to be seen behind it.
            return
        parts = [(join.view.name, join.features) for join in plan.joins]
        parts += [(step.plan.name, step.features) for step in plan.steps]
        for view, features in parts:
            shown = self.views.setdefault(view, set())
            if shown is not None:
                shown.update(features)


def _bearer(authorization: str) -> str:
    scheme, _, shown = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError(
            "The call's authorization is of another scheme.", allowed=_NEEDED
        )
    return shown.strip()
