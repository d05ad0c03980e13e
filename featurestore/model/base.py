"""The root of every declaration: frozen, strict about names, and clear when something is wrong.

A mistake is a `DefinitionError` that suggests the near miss. The loader adds file and line: no
declaration looks at who constructs it.
"""

from __future__ import annotations

from typing import Annotated, Any

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


Name = Annotated[str, AfterValidator(_name)]
Tags = Annotated[dict[str, str], PydanticField(default_factory=dict)]


class Declaration(BaseModel):
    """A frozen declaration. Subclasses say what they declare.

    Raises:
        DefinitionError: An argument is unknown, missing or of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _definition_error(type(self), data, error) from error


def _definition_error(
    cls: type[Declaration], data: dict[str, Any], error: ValidationError
) -> DefinitionError:
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    label = f"{cls.__name__}({data['name']!r})" if "name" in data else cls.__name__
    if first["type"] == "extra_forbidden":
        known = list(cls.model_fields)
        return DefinitionError(
            f"{label} has no argument '{location}'.",
            got=location,
            allowed=listing(known),
            hint=near_miss(location, known),
        )
    if first["type"] == "missing":
        return DefinitionError(f"{label} lacks its argument '{location}'.")
    message = first["msg"].removeprefix("Value error, ")
    place = f", argument '{location}'" if location else ""
    got = None if isinstance(first["input"], dict) else repr(first["input"])
    return DefinitionError(f"{label}{place}: {message}.", got=got)
