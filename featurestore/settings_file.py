"""`featurestore.toml` and the `FEATURESTORE_...` variables, which win, become the settings.

Secrets come from variables only; one in the file is refused by name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from featurestore.errors import SettingsError, near_miss
from featurestore.model.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "featurestore.toml"
_SECRETS = (
    ("registry", "password"),
    ("online", "password"),
    ("online", "sentinel_password"),
    ("streams", "password"),
    ("access", "api_key"),
)
_VARIABLES = {("access", "api_key"): "FEATURESTORE_API_KEY"}


class _FromEnvironment(BaseSettings, Settings):
    """The settings with the environment laid over the file's values."""

    model_config = SettingsConfigDict(
        env_prefix="FEATURESTORE_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        frozen=True,
        extra="forbid",
        # What was given may be a secret in the wrong place.
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables first, then the file, which comes as arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load_settings(folder: Path) -> Settings:
    """Return the settings of a repository.

    Raises:
        SettingsError: The file is missing or wrong, or holds a secret; names the key.
    """
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"There is no {FILE_NAME} here.",
            where=str(folder.resolve()),
            hint="Run 'featurestore init DIR' to begin, or name the folder with --repo.",
        ) from error
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{FILE_NAME} cannot be read.", where=str(path), got=str(error)
        ) from error
    _refuse_secrets(values, path)
    try:
        return _FromEnvironment(**values)
    except ValidationError as error:
        raise _settings_error(error, path) from error


def _refuse_secrets(values: Mapping[str, Any], path: Path) -> None:
    for section, key in _SECRETS:
        table = values.get(section)
        if not isinstance(table, dict):
            continue
        inside = isinstance(table.get("url"), str) and urlsplit(table["url"]).password
        if key in table or inside:
            raise SettingsError(
                f"A secret stands in {FILE_NAME}.",
                where=f"{path}, [{section}]",
                hint=f"Take it out and set {_variable(section, key)}.",
            )


def _variable(section: str, key: str) -> str:
    return _VARIABLES.get((section, key), f"FEATURESTORE_{section.upper()}_{key.upper()}")


def _settings_error(error: ValidationError, path: Path) -> SettingsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    known = [*Settings.model_fields]
    for name, field in Settings.model_fields.items():
        nested = getattr(field.annotation, "model_fields", {})
        known += [f"{name}.{inner}" for inner in nested]
    if first["type"] == "extra_forbidden":
        return SettingsError(
            f"The setting '{key}' does not exist.",
            where=str(path),
            hint=near_miss(key, known) or "See docs/settings.md for all of them.",
        )
    if first["type"] == "missing":
        return SettingsError(f"The setting '{key}' is missing.", where=str(path))
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    # A text where a table belongs may be a URL with a password.
    got = repr(given) if len(first["loc"]) > 1 else f"a {type(given).__name__}"
    return SettingsError(f"The setting '{key}' is wrong: {message}.", where=str(path), got=got)
