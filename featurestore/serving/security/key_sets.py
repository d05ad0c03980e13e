"""The public keys that tokens are signed by: a JWKS from a file or an https URL, kept in memory.

Asked for again when it is old, and when a token names a key that is not there; but not more often
than every few seconds, by one thread at a time, and never for more than a bounded size and time.
Keys that are secret or weak are left out: nothing here can check a token by a shared secret.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from featurestore.clock import Clock
from featurestore.errors import (
    FeatureStoreError,
    SettingsError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from jwt import PyJWK

# What a key may be used for is the key's own matter, never the token's.
_ALGORITHMS = {"RSA": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}
_LEAST_RSA_BITS = 2_048
_MAX_BYTES = 1 << 20
_MAX_KEYS = 100
_FETCH_SECONDS = 5.0
_OLD_SECONDS = 300.0
_PAUSE_SECONDS = 10.0
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class KeySet:
    """Public keys by their id.

    Args:
        location: A file, or an https URL (http only of this machine).
        clock: Tells when to ask again.

    Raises:
        SettingsError: The location is none, or the file is none of this kind.
    """

    def __init__(self, location: str | Path, clock: Clock) -> None:
        self.location = str(location)
        self._clock = clock
        self._load = _loader(location)
        self._keys: Mapping[str | None, tuple[PyJWK, str]] = {}
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self.last_error: FeatureStoreError | None = None
        self._lock.acquire()
        self._refresh()
        if isinstance(self.last_error, SettingsError):
            raise self.last_error

    @property
    def current(self) -> object:
        """What is another object once keys were asked for again."""
        return self._keys

    def refresh(self) -> None:
        """Begin to ask again if what is known is old, or could not be got; nobody waits for it."""
        pause = _PAUSE_SECONDS if self.last_error is not None else _OLD_SECONDS
        if self._clock.monotonic() >= self._asked + pause and self._lock.acquire(blocking=False):
            threading.Thread(target=self._refresh, name="token-keys", daemon=True).start()

    def key(self, ident: str | None) -> tuple[PyJWK, str]:
        """Return a key and the algorithm that it is for.

        Args:
            ident: Its `kid`; None takes the only key, where there is one only.

        Raises:
            UnauthenticatedError: There is none of this id.
            UnavailableError: It might be among those that are being asked for just now.
        """
        found = self._find(ident)
        due = self._clock.monotonic() >= self._asked + _PAUSE_SECONDS
        if found is None and due and self._lock.acquire(blocking=False):
            self._refresh()
            found = self._find(ident)
        elif found is None and self._lock.locked():
            # Whoever comes second does not wait: strangers must not be able to hold up threads.
            raise _asking()
        if found is None:
            raise UnauthenticatedError(
                "The token is signed by a key that is not known.",
                got="a token without kid" if ident is None else f"kid {ident[:100]!r}",
            )
        return found

    def _find(self, ident: str | None) -> tuple[PyJWK, str] | None:
        keys = self._keys
        if ident is None and len(keys) == 1:
            return next(iter(keys.values()))
        return keys.get(ident)

    def _refresh(self) -> None:
        """Ask now; the lock is held, and let go of here."""
        try:
            # Noted first: what fails is not tried again at once.
            self._asked = self._clock.monotonic()
            self._keys = _parsed(self._load(), self.location)
            self.last_error = None
        except FeatureStoreError as error:
            self.last_error = error
        finally:
            self._lock.release()


def _asking() -> UnavailableError:
    error = UnavailableError(
        "The key of the token is not known yet; keys are being asked for.",
        hint="Try again in a second.",
    )
    error.retry_seconds = 1.0
    return error


def _loader(location: str | Path) -> Callable[[], bytes]:
    parts = urlsplit(str(location))
    if parts.scheme not in {"http", "https"} or isinstance(location, Path):
        path = Path(location)
        return lambda: _read_file(path)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise SettingsError(
            "Keys that tokens are checked by must come over https.",
            where="serving.jwt_keys",
            got=str(location),
        )
    opener = urllib.request.build_opener(_NoRedirects)
    return lambda: _fetch(opener, str(location))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects could lead from https to http, or into somebody's network."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()[: _MAX_BYTES + 1]
    except OSError as error:
        raise SettingsError(
            "The key set for tokens cannot be read.",
            where=str(path),
            got=error.strerror or str(error),
            hint="serving.jwt_keys names a JSON file (JWKS) or an https URL.",
        ) from error


def _fetch(opener: urllib.request.OpenerDirector, url: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310
    try:
        with opener.open(request, timeout=_FETCH_SECONDS) as answer:
            data: bytes = answer.read(_MAX_BYTES + 1)
            return data
    except (OSError, HTTPException, ValueError) as error:
        raise UnavailableError(
            "The key set for tokens cannot be fetched.",
            where=url,
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error


def _parsed(data: bytes, location: str) -> Mapping[str | None, tuple[PyJWK, str]]:
    try:
        found = [(item.get("kid"), usable(item)) for item in _items(data)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            "This is no key set (JWKS).",
            where=location,
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    keys = {ident: key for ident, key in found if key is not None}
    if not keys:
        raise SettingsError(
            "The key set holds no key that tokens can be checked by.",
            where=location,
            allowed="public keys for RS256 (2048 bits or more), ES256 or EdDSA (Ed25519)",
        )
    return keys


def _items(data: bytes) -> list[dict[str, Any]]:
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    items = json.loads(data)["keys"]
    if not isinstance(items, list) or len(items) > _MAX_KEYS:
        raise ValueError(f"'keys' is no list of at most {_MAX_KEYS}")
    return items


def usable(item: Mapping[str, Any]) -> tuple[PyJWK, str] | None:
    """Return a public key that may check tokens and its algorithm, or None."""
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    algorithm = _ALGORITHMS.get(item.get("crv") or item.get("kty") or "")
    told = item.get("alg")
    if algorithm is None or told not in {None, algorithm} or item.get("use") not in {None, "sig"}:
        return None
    public = {name: value for name, value in item.items() if name in _PUBLIC_PARTS}
    try:
        key = PyJWK(public, algorithm)
    except (PyJWTError, ValueError, TypeError):
        return None
    weak = algorithm == "RS256" and key.key.key_size < _LEAST_RSA_BITS
    return None if weak else (key, algorithm)


# A private key that somebody published by mistake is used for its public half alone.
_PUBLIC_PARTS = {"kty", "crv", "kid", "use", "alg", "n", "e", "x", "y"}
