"""All that stands before a server's methods, in one object that every front uses alike.

A front makes a `Call` of what came, has it admitted, asks for the permissions that the method
needs, reads the store through the breaker, and tells how it ended. Where nothing is set up, each of
these costs next to nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from featurestore.access.audit import LONGEST_NAME, audit_of
from featurestore.access.key_ring import KeyRing
from featurestore.access.keys import KeyFile
from featurestore.access.requests import told
from featurestore.clock import Clock
from featurestore.compile.request import FeaturesArgument
from featurestore.errors import FeatureStoreError, RequestError, SettingsError
from featurestore.model.settings import ServingSettings
from featurestore.semantics.timeline import format_instant
from featurestore.services.response import OnlineResponse
from featurestore.services.state import StateCache
from featurestore.serving.security.access import Access
from featurestore.serving.security.breaker import Breaker
from featurestore.serving.security.calls import Call
from featurestore.serving.security.key_sets import KeySet
from featurestore.serving.security.tokens import TokenChecker, TokenRules, check_installed


class Guard:
    """Knows callers, what they may do, how much is too much, and what is to be written down.

    Args:
        project: The project that is served.
        settings: What is set up; paths in it begin at `folder`.
        folder: The repository.
        clock: Tells the time.

    Raises:
        SettingsError: What is set up does not hold together, or a file of it cannot be read.
    """

    def __init__(self, project: str, settings: ServingSettings, folder: Path, clock: Clock) -> None:
        self._log = structlog.get_logger("featurestore.serving")
        self._clock = clock
        self._max_entity_rows = settings.max_entity_rows
        self._troubles: dict[str, str] = {}
        self._ring = _key_ring(settings, folder, clock)
        self._tokens = _tokens(settings, folder, clock)
        self.access = Access(project, self._ring, self._tokens)
        self.breaker = Breaker(clock, settings.breaker_failures, settings.breaker_seconds)
        self._audit = audit_of(settings.audit_log, folder, "serving.audit_log", self._log)

    @property
    def audited(self) -> bool:
        """Whether calls are written down."""
        return self._audit is not None

    def note(self, call: Call) -> None:
        """Note when a call came."""
        call.begun = self._clock.monotonic()

    def admit(self, call: Call) -> None:
        """Find out who makes a call; nothing of it has been read yet.

        Raises:
            UnauthenticatedError: It does not say, or what it says is not valid.
            UnavailableError: That cannot be told just now.
        """
        if self.access.restricted:
            call.principal = self.access.principal(call.api_key, call.authorization)

    def begin_read(
        self, call: Call, features: FeaturesArgument, rows: int, states: StateCache
    ) -> None:
        """Refuse a lookup that is too large, or that its caller may not make.

        Raises:
            RequestError: It asks for more entities than are answered at once.
            AccessDeniedError: The caller may not read what it asks for.
        """
        if self._audit is not None:
            call.facts = {**told(features), "rows": rows}
        if call.principal.scopes is not None:
            self.access.permit_features(call.principal, features, states.get())
        if 0 < self._max_entity_rows < rows:
            raise RequestError(
                "The request asks for more entities than the server answers at once.",
                got=f"{rows} entity rows",
                allowed=f"{self._max_entity_rows}",
                hint="Ask several times, or raise serving.max_entity_rows.",
            )

    def end_read(self, call: Call, answer: OnlineResponse) -> None:
        """Note what was read for a lookup."""
        if self._audit is not None:
            sources = answer.layout.sources
            call.facts["keys"] = answer.rows * len(sources)
            call.facts["fingerprints"] = {source.view: source.fingerprint for source in sources}

    def begin_push(self, call: Call, source: str) -> None:
        """Refuse a push that its caller may not make.

        Raises:
            AccessDeniedError: The caller may not push to the source.
        """
        if self._audit is not None:
            call.facts = {"source": source[:LONGEST_NAME]}
        if call.principal.scopes is not None:
            self.access.permit_push(call.principal, source)

    def ended(self, call: Call, status: str, error: FeatureStoreError | None, peer: str) -> None:
        """Write down how a call ended.

        Args:
            call: The call.
            status: "OK", or the name of a gRPC status.
            error: Why it failed, if it did.
            peer: The caller's address.
        """
        if self._audit is None:
            return
        line: dict[str, Any] = {
            "at": format_instant(self._clock.now_us()),
            "request_id": call.id,
            "who": call.principal.name,
            "peer": peer,
            "method": call.method,
            "project": self.access.project,
            "status": status,
            "latency_ms": round((self._clock.monotonic() - call.begun) * 1e3, 3),
            **call.facts,
        }
        if error is not None:
            line["error"] = type(error).__name__
            if status in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
                line["reason"] = error.what
                line["missing"] = error.allowed
        self._audit.write(line)

    def refresh(self) -> None:
        """Look for keys that are new or revoked; for a thread in the background."""
        held: list[tuple[str, KeyRing | KeySet | None]] = [
            ("API keys", self._ring),
            ("token keys", self._tokens.keys if self._tokens else None),
        ]
        for name, source in held:
            if source is None:
                continue
            source.refresh()
            error = source.last_error
            trouble = "" if error is None else error.what
            if trouble != self._troubles.get(name, ""):
                self._troubles[name] = trouble
                if error is not None:
                    self._log.error("unavailable", part=name, where=error.where, error=error.what)
                else:
                    self._log.info("available again", part=name)

    def close(self) -> None:
        """Write what is left of the audit."""
        if self._audit is not None:
            self._audit.close()


def _key_ring(settings: ServingSettings, folder: Path, clock: Clock) -> KeyRing | None:
    if settings.keys_file is None:
        return None
    return KeyRing(KeyFile(folder / settings.keys_file, clock), clock)


def _tokens(settings: ServingSettings, folder: Path, clock: Clock) -> TokenChecker | None:
    named = (settings.jwt_keys, settings.jwt_issuer, settings.jwt_audience)
    if not any(named):
        return None
    place, issuer, audience = named
    if not place or not issuer or not audience:
        raise SettingsError(
            "Tokens are checked by their keys, issuer and audience: all three are needed.",
            where="serving",
            allowed="jwt_keys, jwt_issuer and jwt_audience",
        )
    check_installed()
    rules = TokenRules(issuer, audience, settings.jwt_scope_claim, settings.jwt_leeway_seconds)
    keys = KeySet(place if place.startswith(("http:", "https:")) else folder / place, clock)
    return TokenChecker(keys, rules, clock)
