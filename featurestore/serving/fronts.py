"""The fronts beside gRPC that the settings ask for, made where their libraries are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import SettingsError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.serving.exchange import Surroundings
from featurestore.serving.methods import Methods
from featurestore.serving.push import EventReader, EventSink
from featurestore.serving.security.tls import certificate_files

if TYPE_CHECKING:
    from featurestore.serving.connect.front import ConnectFront
    from featurestore.serving.http.front import HttpFront


def http_front(
    settings: ServingSettings,
    folder: Path,
    reader: OnlineReader,
    methods: Methods,
    around: Surroundings,
    *,
    events: EventSink | None,
    event_reader: EventReader | None,
    is_answering: Callable[[], bool],
    share_port: bool,
) -> HttpFront:
    """Return the front for HTTP.

    Args:
        settings: What is set up.
        folder: Where paths in the settings begin.
        reader: Knows the definitions.
        methods: Answer the calls of all fronts.
        around: What all calls need.
        events: Takes pushed events; without it pushes are refused.
        event_reader: Reads them.
        is_answering: Says whether lookups can be answered now.
        share_port: Whether other processes listen on the address too.

    Raises:
        SettingsError: The certificate cannot be used, or a library is missing.
    """
    try:
        from featurestore.serving.http.front import HttpFront
        from featurestore.serving.http.methods import JsonMethods
    except ImportError as error:
        raise _not_installed("HTTP", "http", error) from error
    from featurestore.serving.http.routes import Routes
    from featurestore.serving.http.tls import HttpTls

    files = certificate_files(settings, folder)
    json = JsonMethods(methods, reader, around.guard, settings, events, event_reader)
    return HttpFront(
        settings,
        Routes(json, is_answering),
        json,
        around,
        tls=None if files is None else HttpTls(files, around.log),
        share_port=share_port,
    )


def connect_front(
    settings: ServingSettings,
    folder: Path,
    methods: Methods,
    around: Surroundings,
    *,
    is_answering: Callable[[], bool],
    share_port: bool,
) -> ConnectFront:
    """Return the front for the Connect protocol; arguments and errors as above."""
    try:
        from featurestore.serving.connect.front import ConnectFront
    except ImportError as error:
        raise _not_installed("the Connect protocol", "connect", error) from error
    from featurestore.serving.connect.routes import Routes
    from featurestore.serving.http.tls import HttpTls

    files = certificate_files(settings, folder)
    return ConnectFront(
        settings,
        Routes(methods, is_answering),
        methods,
        around,
        tls=None if files is None else HttpTls(files, around.log),
        share_port=share_port,
    )


def _not_installed(what: str, extra: str, error: ImportError) -> SettingsError:
    return SettingsError(
        f"The server cannot speak {what}: a library is missing.",
        where=f"serving.{extra}_address",
        got=f"no module '{error.name}'",
        hint=f"Install it: pip install 'featurestore[{extra}]'.",
    )
