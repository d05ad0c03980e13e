"""Commands about API keys: `keys create`, `keys list`, `keys revoke`.

Nobody shows a key for them: whoever may write the file may make keys.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table

if TYPE_CHECKING:
    from featurestore.access.keys import KeyFile, KeyRecord

_STYLES: dict[str, Style] = {"valid": "good", "expired": "warning", "revoked": "bad"}
_DURATION = re.compile(r"(\d{1,5})([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}
_HOUR_US = 3_600_000_000


_section = click.option(
    "--section",
    type=click.Choice(["serving", "access"]),
    help="Whose keys, where both sections of the settings name a file: those of feature servers, or"
    " those of Python and the command line.",
)


@click.group("keys", short_help="Make, list and revoke API keys.")
def keys() -> None:
    """Make, list and revoke API keys, in the file `serving.keys_file` or `access.keys_file`."""


@keys.command("create", cls=Command)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    multiple=True,
    required=True,
    help="What it allows, such as 'read_online:flights/service/*'; may be given several times.",
)
@click.option(
    "--expires",
    metavar="WHEN",
    help="From when on it is refused: an instant, or hours, days or weeks from now (12h, 90d, 4w).",
)
@_section
@pass_invocation
def create(
    invocation: Invocation,
    name: str,
    scopes: tuple[str, ...],
    expires: str | None,
    section: str | None,
) -> Output:
    """Make a key for NAME and show it, this once: only its hash is kept."""
    file, now = _file(invocation, section)
    key, record = file.create(name, scopes, None if expires is None else _instant(expires, now))
    data = _data(record, now)
    facts = Facts(
        [
            ("key", Cell(key, "heading")),
            ("id", record.id),
            ("name", record.name),
            ("scopes", ", ".join(record.scopes)),
            ("expires", _moment(record.expires_us) or "never"),
        ]
    )
    note = Cell("The key is not kept and cannot be shown again.", "warning")
    return Output({"key": key, **data}, [facts, note])


@keys.command("list", cls=Command)
@_section
@pass_invocation
def list_(invocation: Invocation, section: str | None) -> Output:
    """List all keys: for whom, what they allow, and whether they are valid."""
    file, now = _file(invocation, section)
    found = [_data(record, now) for record in file.read().values()]
    rows: list[list[str | Cell]] = [
        [
            item["id"],
            item["name"],
            ", ".join(item["scopes"]),
            Cell(item["state"], _STYLES[item["state"]]),
            _shown(item["created_at"]),
            _shown(item["expires_at"]) or "never",
        ]
        for item in found
    ]
    columns = ("id", "~name", "~scopes", "state", "created at", "expires at")
    return Output({"keys": found}, [Table(columns, rows, empty="No keys.")])


@keys.command("revoke", cls=Command)
@click.argument("ident", metavar="ID")
@_section
@pass_invocation
def revoke(invocation: Invocation, ident: str, section: str | None) -> Output:
    """Refuse the key ID from now on; servers notice within `serving.refresh_seconds`."""
    file, now = _file(invocation, section)
    record = file.revoke(ident)
    data = _data(record, now)
    blocks: list[Block] = [Cell(f"Key {record.id} ({record.name}) is revoked.", "good")]
    return Output(data, blocks)


def _file(invocation: Invocation, section: str | None) -> tuple[KeyFile, int]:
    """Return the file of the keys, and the instant."""
    from featurestore.access.keys import KeyFile
    from featurestore.clock import SystemClock
    from featurestore.errors import SettingsError
    from featurestore.settings_file import load_settings

    settings = load_settings(invocation.folder)
    places = {"serving": settings.serving.keys_file, "access": settings.access.keys_file}
    named = {place for name, place in places.items() if place and section in {None, name}}
    if not named:
        wanted = section or "serving"
        raise SettingsError(
            "No file is set for API keys.",
            where=f"{wanted}.keys_file" if section else "serving.keys_file, access.keys_file",
            hint=f'Add keys_file = "data/keys.json" below [{wanted}] in featurestore.toml.',
        )
    if len(named) > 1:
        raise SettingsError(
            "Feature servers and the repository have keys of their own.",
            where="serving.keys_file, access.keys_file",
            got=" and ".join(sorted(named)),
            hint="Say which: --section serving, or --section access.",
        )
    clock = SystemClock()
    return KeyFile(invocation.folder / named.pop(), clock), clock.now_us()


def _instant(text: str, now_us: int) -> int:
    from featurestore.semantics.timeline import to_instant

    match = _DURATION.fullmatch(text)
    if match is not None:
        return now_us + int(match[1]) * _HOURS[match[2]] * _HOUR_US
    return to_instant(text, "--expires")


def _data(record: KeyRecord, now_us: int) -> dict[str, Any]:
    expired = record.expires_us is not None and record.expires_us <= now_us
    return {
        "id": record.id,
        "name": record.name,
        "scopes": list(record.scopes),
        "state": "revoked" if record.revoked_us is not None else "expired" if expired else "valid",
        "created_at": _datetime(record.created_us),
        "expires_at": _datetime(record.expires_us),
        "revoked_at": _datetime(record.revoked_us),
    }


def _datetime(instant: int | None) -> Any:
    from featurestore.semantics.timeline import to_datetime

    return None if instant is None else to_datetime(instant)


def _moment(instant: int | None) -> str:
    return _shown(_datetime(instant))


def _shown(moment: Any) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%dT%H:%MZ}"


COMMANDS = (keys,)
