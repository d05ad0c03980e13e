"""What stands before the verbs of an open repository; this gate lets everybody through.

A verb says to it what it is about to do, and does it within the `Call` that it gets. Where the
section [access] of the settings says nothing, that is all that happens; where it does, it is a
`gatekeeper` that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from featurestore.access.scopes import Action, Kind
    from featurestore.compile.diff import ApplyPlan
    from featurestore.compile.plan import Catalog
    from featurestore.compile.request import FeaturesArgument
    from featurestore.ports.registry import ProjectState


class Call:
    """A call of a verb, as a context that lasts as long as it does.

    Attributes:
        who: Who makes it, where somebody asks.
        rows: The rows that it returned or wrote, for the audit; None where that is not known.
    """

    __slots__ = ("rows", "who")

    def __init__(self) -> None:
        self.who: str | None = None
        self.rows: int | None = None

    def begin(self) -> None:
        """Find out who calls, and whether they may.

        Raises:
            UnauthenticatedError: Nobody has said, or not rightly.
            AccessDeniedError: They may not; says which scope is missing.
        """

    def count(self, entity_rows: Any) -> None:
        """Note how many rows were handed in, where that can be told without reading them."""

    def permit_change(self, plan: ApplyPlan, before: ProjectState, after: Catalog) -> None:
        """Return if whoever calls may apply a plan.

        Args:
            plan: What would change.
            before: The project as it is.
            after: The definitions as they would be.

        Raises:
            AccessDeniedError: They may not.
        """

    def permit_logged(self, views: Callable[[], Iterable[str]]) -> None:
        """Return if whoever calls may read what was logged for the features that they ask for.

        Args:
            views: Tells from which views these answers were made. A name in the log may be another
                view's alias.

        Raises:
            AccessDeniedError: They may not.
        """

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        pass


# One for all: what a verb notes in it is read by nobody.
_UNASKED = Call()


class Gate:
    """Asks nobody. A gatekeeper has the same methods; each names the verb, for the audit."""

    @property
    def asks(self) -> bool:
        """Whether anybody is asked."""
        return False

    def looking(self, verb: str) -> Call:
        """Return the call of a verb that shows definitions, plans or states, but no values."""
        del verb
        return _UNASKED

    def reading(
        self, verb: str, action: Action, features: FeaturesArgument, *, filling: bool = False
    ) -> Call:
        """Return the call of a verb that reads features.

        Args:
            verb: The verb.
            action: "read_online" or "read_offline".
            features: What is read.
            filling: Whether views are materialized first, which is writing.
        """
        del verb, action, features, filling
        return _UNASKED

    def reading_log(self, verb: str, features: FeaturesArgument | None) -> Call:
        """Return the call of a verb that reads what was served.

        Args:
            verb: The verb.
            features: As they were asked for; None is all that was logged.
        """
        del verb, features
        return _UNASKED

    def changing(
        self, verb: str, action: Action, kind: Kind, names: Sequence[str] | None = None
    ) -> Call:
        """Return the call of a verb that writes or applies.

        Args:
            verb: The verb.
            action: "write" or "apply".
            kind: What it changes.
            names: Which of them; None is all that there are and will be.
        """
        del verb, action, kind, names
        return _UNASKED

    def close(self) -> None:
        """Write what is left of the audit."""


OPEN = Gate()
