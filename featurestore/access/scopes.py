"""What callers may do: scopes, principals, and the one function that decides.

A scope reads `action:project/kind/name`, as in `read_online:flights/service/departure_delay`. What
is left out at the end means all: `read_online:flights` is every service, view and source of the
project. `*` stands for any text within a part. Whatever no scope names is denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from featurestore.errors import AccessDeniedError, RequestError, listing

Action = Literal["read_online", "read_offline", "write", "apply"]
Kind = Literal["service", "view", "source", "*"]

ACTIONS: tuple[Action, ...] = ("read_online", "read_offline", "write", "apply")
KINDS: tuple[Kind, ...] = ("service", "view", "source")
ALL: Literal["*"] = "*"
"""The name of a resource that stands for all of its kind, and the kind that stands for all kinds:
only scopes that say `*` there, or leave it out, cover it."""
_ALLOWED = (
    f"action:project/kind/name with the action {listing(ACTIONS)} or *, the kind {listing(KINDS)}"
    " or *, and * for any text; parts may be left out from the end"
)
_PART = re.compile(r"[\w.*-]+", re.ASCII)
_PARTS = 3
# Decisions that a principal remembers; a caller who tries names does not fill the memory.
_REMEMBERED = 1_024
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Resource:
    """What an action is about.

    Attributes:
        project: The project.
        kind: "service", "view" (on-demand views are views), "source", or `ALL`.
        name: Its name, or `ALL`.
    """

    project: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.project}/{self.kind}/{self.name}"

    @property
    def shown(self) -> str:
        """What it is, for people."""
        if self.kind == ALL:
            return "the whole project"
        return f"every {self.kind}" if self.name == ALL else f"the {self.kind} '{self.name}'"


@dataclass(frozen=True, slots=True)
class Scope:
    """A permission: an action, and a pattern for what it is about; see the head of this module."""

    text: str
    action: str
    pattern: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Return what a text means.

        Raises:
            RequestError: It is no scope.
        """
        action, colon, rest = text.partition(":")
        parts = rest.split("/") if rest else []
        known = action == "*" or action in ACTIONS
        fits = 0 < len(parts) <= _PARTS and all(_PART.fullmatch(part) for part in parts)
        if not (colon and known and fits) or (len(parts) > 1 and parts[1] not in {*KINDS, "*"}):
            raise RequestError("This is no scope.", got=repr(text[:200]), allowed=_ALLOWED)
        parts += ["*"] * (_PARTS - len(parts))
        return cls(text, action, re.compile("/".join(map(_pattern, parts))))

    def covers(self, action: Action, resource: Resource) -> bool:
        """Whether it allows an action."""
        fits = self.action in {"*", action}
        return fits and self.pattern.fullmatch(str(resource)) is not None

    def is_about(self, project: str) -> bool:
        """Whether it allows anything in a project."""
        part = self.text.partition(":")[2].partition("/")[0]
        return re.fullmatch(_pattern(part), project) is not None


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever makes a call, and what it may do.

    Attributes:
        name: Who, for logs and messages: "key:4f2a…", "token:alice", "certificate:billing".
        scopes: What it may do; None is everything, where access is not restricted.
    """

    name: str
    scopes: tuple[Scope, ...] | None = ()
    _decided: dict[tuple[Action, Resource], bool] = field(
        default_factory=dict, repr=False, compare=False
    )

    def may(self, action: Action, resource: Resource) -> bool:
        """Whether it may do something."""
        if self.scopes is None:
            return True
        known = self._decided.get((action, resource))
        if known is None:
            known = any(scope.covers(action, resource) for scope in self.scopes)
            if len(resource.name) > _LONGEST_NAME:
                return known
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            self._decided[action, resource] = known
        return known


ANYONE = Principal("anyone", None)
"""Whoever calls where nobody is asked."""


def parse_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """Return scopes, each once.

    Raises:
        RequestError: A text is no scope.
    """
    return tuple(Scope.parse(text) for text in dict.fromkeys(texts))


def authorize(principal: Principal, action: Action, resource: Resource) -> None:
    """Return if a principal may do something.

    Raises:
        AccessDeniedError: It may not; says which scope would allow it.
    """
    if principal.may(action, resource):
        return
    named = Resource(resource.project, resource.kind, resource.name[:_LONGEST_NAME])
    allowed = f"{action}:{named.project if named.kind == ALL else named}"
    raise _denied(principal, f"{action} {named.shown}", resource.project, allowed)


def authorize_any(principal: Principal, project: str) -> None:
    """Return if a principal may do anything at all in a project.

    Raises:
        AccessDeniedError: No scope of it is about the project.
    """
    if principal.scopes is None or any(scope.is_about(project) for scope in principal.scopes):
        return
    allowed = f"a scope of the project, such as read_offline:{project}"
    raise _denied(principal, f"do anything in the project '{project}'", project, allowed)


def _denied(principal: Principal, what: str, project: str, allowed: str) -> AccessDeniedError:
    held = ", ".join(scope.text for scope in principal.scopes or ())
    return AccessDeniedError(
        f"{principal.name} may not {what}.",
        where=f"project '{project}'",
        got=f"the scopes {held}" if held else "no scopes",
        allowed=allowed,
        hint="Ask whoever gives out keys or tokens for this scope.",
    )


def _pattern(part: str) -> str:
    return re.escape(part).replace(r"\*", "[^/]*")
