"""The root of every declaration: frozen, strict about names, and clear when something is wrong.

A mistake is a `DefinitionError` that suggests the near miss. The loader adds file and line: no
declaration looks at who constructs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic import Field as PydanticField

from featurestore.errors import DefinitionError, listing, near_miss

RESERVED = frozenset({"event_timestamp", "created_timestamp", "event_period"})


def _name(value: str) -> str:
    if not value.isidentifier() or not value.isascii():
        raise ValueError("a name has letters, digits and underscores, and begins with no digit")
    if "__" in value or value.startswith("_"):
        raise ValueError(
            "a name neither begins with an underscore nor has two in a row (view__feature is the"
            " full name of a feature)"
        )
    return value


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("an empty text says nothing; leave it out")
    return value


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before, in any case, or None.

    Engines and file systems do not tell "Temp" from "temp".
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            return name
        seen.add(name.lower())
    return None


def is_reserved(name: str) -> bool:
    """Whether every table has a column of this name."""
    return name.lower() in RESERVED


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, AfterValidator(_text)]
Tags = Annotated[dict[str, str], PydanticField(default_factory=dict)]


class Declaration(BaseModel):
    """A frozen declaration. Subclasses say what they declare.

    Raises:
        DefinitionError: An argument is unknown, missing, of the wrong type or given by position.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, /, *args: Any, **data: Any) -> None:
        if args:
            raise DefinitionError(
                f"{type(self).__name__} takes its arguments by name.",
                got=_shown(args[0]),
                allowed=listing(type(self).model_fields),
                hint=f"Write {type(self).__name__}({next(iter(type(self).model_fields))}=...).",
            )
        self._require_lists(data)
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _definition_error(type(self), data, error) from error

    @classmethod
    def _require_lists(cls, data: dict[str, Any]) -> None:
        # pydantic takes any iterable for a tuple, and a declaration would be one of its fields.
        for name, field in cls.model_fields.items():
            if name in data and get_origin(field.annotation) is tuple:
                value = data[name]
                if not isinstance(value, list | tuple):
                    raise DefinitionError(
                        f"{_label(cls, data)}, argument '{name}': a list is needed.",
                        got=_shown(value),
                        hint=f"Write {name}=[...].",
                    )

    def __repr__(self) -> str:
        name = getattr(self, "name", None)
        return f"{type(self).__name__}({name!r})" if name else super().__repr__()


# What pydantic says in its own words, in ours.
_MESSAGES = {
    "string_type": "a text is needed",
    "dict_type": "a dictionary is needed",
    "bool_type": "True or False is needed",
    "bool_parsing": "True or False is needed",
    "callable_type": "a function is needed",
}
_MAX_SHOWN = 120
_PASSWORD = re.compile(r"(//[^/@:\s]*:)[^/@\s]*@")


def _definition_error(
    cls: type[Declaration], data: dict[str, Any], error: ValidationError
) -> DefinitionError:
    # A name that is misspelt is told before the one that is missing because of it.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])[1:]
    label = _label(cls, data)
    if first["type"] == "extra_forbidden":
        known = list(cls.model_fields)
        return DefinitionError(
            f"{label} has no argument '{location}'.",
            allowed=listing(known),
            hint=near_miss(location, known),
        )
    if first["type"] == "missing":
        return DefinitionError(f"{label} lacks its argument '{location}'.")
    place = f"{label}, argument '{location}'" if location else label
    got = _shown(first["input"]) if location else None
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, DefinitionError):
        return DefinitionError(
            f"{place}: {cause.what}", got=got, allowed=cause.allowed, hint=cause.hint
        )
    message = _message(first)
    end = "" if message.endswith("?") else "."
    return DefinitionError(f"{place}: {message}{end}", got=got)


def _message(error: Any) -> str:
    kind = error["type"]
    if kind == "model_type":
        return f"a declaration of class {error['ctx']['class_name']} is needed"
    if kind.startswith("time_delta"):
        return "a timedelta is needed, such as timedelta(hours=6)"
    text: str = error["msg"]
    return _MESSAGES.get(kind, text.removeprefix("Value error, ").removesuffix("."))


def _label(cls: type[Declaration], data: dict[str, Any]) -> str:
    return f"{cls.__name__}({data['name']!r})" if "name" in data else cls.__name__


def _shown(value: Any) -> str:
    text = _PASSWORD.sub(r"\1***@", repr(value))
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
