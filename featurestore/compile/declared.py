"""The declarations of a project as they were found: values with the place of each.

Finding them in modules is the loader's work, telling what they mean `catalog`'s. Places are texts
such as "definitions/views.py:14"; declarations that come from elsewhere have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from featurestore.errors import DefinitionError, DuplicateNameError
from featurestore.model.base import Declaration
from featurestore.model.declarations import Entity, FeatureService, FeatureView, OnDemandFeatureView
from featurestore.model.sources import FileSource, RequestSource, StreamSource

KINDS: dict[type[Declaration], str] = {
    Entity: "entity",
    FileSource: "file_source",
    StreamSource: "stream_source",
    RequestSource: "request_source",
    FeatureView: "feature_view",
    OnDemandFeatureView: "on_demand_feature_view",
    FeatureService: "feature_service",
}
"""What is declared, by class, and the name of its kind in plans and in the registry."""

_D = TypeVar("_D", bound=Declaration)


@dataclass(frozen=True)
class Declared:
    """A declaration and its place."""

    declaration: Any
    where: str | None = None

    @property
    def label(self) -> str:
        """Class, name and place, as in "FeatureView 'weather', definitions/views.py:14"."""
        text = f"{type(self.declaration).__name__} '{self.declaration.name}'"
        return f"{text}, {self.where}" if self.where else text


@dataclass(frozen=True)
class Declarations:
    """All that a project declares, each object once.

    Attributes:
        items: The declarations in the order in which they were found.
    """

    items: tuple[Declared, ...]

    @classmethod
    def of(cls, *declarations: Declaration) -> Declarations:
        """Return declarations that stand in no file.

        Raises:
            DefinitionError: One of them declares nothing by itself.
        """
        for item in declarations:
            if type(item) not in KINDS:
                raise DefinitionError(
                    "This is no declaration of its own.",
                    got=repr(item),
                    allowed=", ".join(kind.__name__ for kind in KINDS),
                )
        return cls(tuple(Declared(item) for item in declarations))

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities."""
        return self._of(Entity)

    @property
    def sources(self) -> tuple[FileSource | StreamSource | RequestSource, ...]:
        """Sources of files, streams and requests."""
        return (*self._of(FileSource), *self._of(StreamSource), *self._of(RequestSource))

    @property
    def views(self) -> tuple[FeatureView, ...]:
        """The feature views."""
        return self._of(FeatureView)

    @property
    def on_demand(self) -> tuple[OnDemandFeatureView, ...]:
        """The on-demand views."""
        return self._of(OnDemandFeatureView)

    @property
    def services(self) -> tuple[FeatureService, ...]:
        """The feature services."""
        return self._of(FeatureService)

    @property
    def functions(self) -> dict[str, Callable[[Any], Any]]:
        """The function of each on-demand view by its name."""
        return {view.name: view.function for view in self.on_demand}

    def location(self, kind: str, name: str) -> str | None:
        """Return the place of a declaration, None when it is unknown.

        Args:
            kind: As in `KINDS`, such as "feature_view".
            name: Its name.
        """
        return next(
            (
                item.where
                for item in self.items
                if KINDS[type(item.declaration)] == kind and item.declaration.name == name
            ),
            None,
        )

    def label(self, declaration: Any) -> str:
        """Return class, name and place of a declaration, for errors."""
        return self._by_identity.get(id(declaration), Declared(declaration)).label

    def complete(self) -> Declarations:
        """Return these and all that they refer to as objects: sources, entities, other views.

        Raises:
            DuplicateNameError: Two different declarations of one kind share a name.
        """
        found = {id(item.declaration): item for item in self.items}
        waiting = list(self.items)
        while waiting:
            for used in _references(waiting.pop().declaration):
                if id(used) not in found:
                    found[id(used)] = Declared(used)
                    waiting.append(found[id(used)])
        result = Declarations(tuple(found.values()))
        result._refuse_duplicates()
        return result

    @cached_property
    def _by_identity(self) -> dict[int, Declared]:
        return {id(item.declaration): item for item in self.items}

    def _of(self, kind: type[_D]) -> tuple[_D, ...]:
        return tuple(i.declaration for i in self.items if isinstance(i.declaration, kind))

    def _refuse_duplicates(self) -> None:
        held: dict[tuple[str, str], Declared] = {}
        for item in self.items:
            # Views of both kinds share one name space: references tell them by name alone.
            kind = KINDS[type(item.declaration)].removeprefix("on_demand_")
            other = held.setdefault((kind, item.declaration.name.lower()), item)
            if other is item:
                continue
            same = other.declaration == item.declaration
            if not same or kind in {"feature_view", "feature_service"}:
                raise _duplicate(other, item, same=same)


def _references(declaration: Any) -> Iterator[Any]:
    if isinstance(declaration, FeatureView):
        yield declaration.source
        yield from declaration.entities
    items: Iterable[Any] = ()
    if isinstance(declaration, OnDemandFeatureView):
        items = declaration.sources
    elif isinstance(declaration, FeatureService):
        items = declaration.features
    yield from (item for item in items if type(item) in KINDS)


def _duplicate(first: Declared, second: Declared, *, same: bool) -> DuplicateNameError:
    one, two = first.declaration, second.declaration
    what = f"Two declarations are called '{one.name}'."
    if one.name != two.name:
        what = f"The names '{one.name}' and '{two.name}' differ in case only."
    hint = "Rename one of them; views and on-demand views share their names."
    if same:
        hint = "They are the same: keep one and import it where it is used."
    elif not first.where or not second.where:
        hint = "Rename one; one of them may be an old object that another declaration refers to."
    return DuplicateNameError(what, where=f"{first.label}; {second.label}", hint=hint)
