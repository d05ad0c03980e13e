"""Commands about the API keys of feature servers: `keys create`, `keys list`, `keys revoke`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table

if TYPE_CHECKING:
    from featurestore.serving.security.keys import KeyFile, KeyRecord

_STYLES: dict[str, Style] = {"valid": "good", "expired": "warning", "revoked": "bad"}
_DURATION = re.compile(r"(\d{1,5})([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}
_HOUR_US = 3_600_000_000


@click.group("keys", short_help="Make, list and revoke API keys.")
def keys() -> None:
    """Make, list and revoke the API keys of feature servers, in the file `serving.keys_file`."""


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
@pass_invocation
def create(
    invocation: Invocation, name: str, scopes: tuple[str, ...], expires: str | None
) -> Output:
    """Make a key for NAME and show it, this once: only its hash is kept."""
    with invocation.store() as store:
        file = _file(store)
        until = None if expires is None else _instant(expires, store.services.clock.now_us())
        key, record = file.create(name, scopes, until)
        data = _data(record, store.services.clock.now_us())
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
@pass_invocation
def list_(invocation: Invocation) -> Output:
    """List all keys: for whom, what they allow, and whether they are valid."""
    with invocation.store() as store:
        now = store.services.clock.now_us()
        found = [_data(record, now) for record in _file(store).read().values()]
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
@pass_invocation
def revoke(invocation: Invocation, ident: str) -> Output:
    """Refuse the key ID from now on; servers notice within `serving.refresh_seconds`."""
    with invocation.store() as store:
        record = _file(store).revoke(ident)
        data = _data(record, store.services.clock.now_us())
    blocks: list[Block] = [Cell(f"Key {record.id} ({record.name}) is revoked.", "good")]
    return Output(data, blocks)


def _file(store: Any) -> KeyFile:
    from featurestore.errors import SettingsError
    from featurestore.serving.security.keys import KeyFile

    place = store.services.settings.serving.keys_file
    if place is None:
        raise SettingsError(
            "No file is set for API keys.",
            where="serving.keys_file",
            hint='Add keys_file = "data/keys.json" below [serving] in featurestore.toml.',
        )
    return KeyFile(store.services.folder / place, store.services.clock)


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
