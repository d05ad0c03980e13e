"""JSON Web Tokens: checked by public keys, for us, from whom we trust, and in time.

Only RS256, ES256 and EdDSA, whichever the key is for: the token's word is not asked. The time is
the clock's (law T5). A token that was found good is remembered by its hash until it expires.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.access.scopes import ACTIONS, Principal, Scope
from featurestore.clock import Clock
from featurestore.errors import RequestError, SettingsError, UnauthenticatedError
from featurestore.serving.security.key_sets import KeySet

if TYPE_CHECKING:
    from jwt.types import Options

_MICROS = 1_000_000
_REMEMBERED = 4_096
_LONGEST_TOKEN = 8_192
_LONGEST_SUBJECT = 200
_MAX_SCOPES = 200
_OPTIONS: Options = {
    "require": ["exp", "iss", "aud", "sub"],
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say.

    Attributes:
        issuer: Its `iss`.
        audience: One of its `aud`.
        scope_claim: The claim that holds its scopes.
        leeway_seconds: How far the issuer's clock may be off.
    """

    issuer: str
    audience: str
    scope_claim: str = "scope"
    leeway_seconds: float = 30.0


class TokenChecker:
    """Knows who shows which token.

    Args:
        keys: The keys that tokens are signed by.
        rules: What they must say.
        clock: Tells what has expired.

    Raises:
        SettingsError: The library that reads tokens is not installed.
    """

    def __init__(self, keys: KeySet, rules: TokenRules, clock: Clock) -> None:
        self.keys = keys
        self._rules = rules
        self._clock = clock
        self._good: dict[bytes, tuple[Principal, float, float, object]] = {}

    def principal(self, token: str) -> Principal:
        """Return who shows a token.

        Raises:
            UnauthenticatedError: It is not valid; errors never hold the token.
            UnavailableError: Its key is being asked for just now.
        """
        if len(token) > _LONGEST_TOKEN:
            raise UnauthenticatedError("The token is too long.", allowed=f"{_LONGEST_TOKEN} bytes")
        held = hashlib.sha256(token.encode(errors="replace")).digest()
        good = self._good.get(held)
        # What was checked by a key that is no longer published is checked anew.
        if good is None or good[3] is not self.keys.current:
            current = self.keys.current
            good = (*self._check(token), current)
            if len(self._good) >= _REMEMBERED:
                self._good.clear()
            self._good[held] = good
        principal, begins, ends, _ = good
        now, leeway = self._clock.now_us() / _MICROS, self._rules.leeway_seconds
        if now >= ends + leeway:
            raise UnauthenticatedError("The token has expired.", got=principal.name)
        if now < begins - leeway:
            raise UnauthenticatedError("The token is not valid yet.", got=principal.name)
        return principal

    def _check(self, token: str) -> tuple[Principal, float, float]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            if "crit" in header or not isinstance(kid, str | None):
                raise UnauthenticatedError("The token's head asks for what is not supported.")
            key, algorithm = self.keys.key(kid)
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                options=_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise UnauthenticatedError(
                "The token is not valid.", got=_reason(error), allowed=self._allowed()
            ) from error
        return self._read(claims)

    def _read(self, claims: Mapping[str, Any]) -> tuple[Principal, float, float]:
        subject = claims["sub"]
        begins, ends = claims.get("nbf", 0), claims["exp"]
        if not all(_is_instant(instant) for instant in (begins, ends)):
            raise UnauthenticatedError("The token's instants are no numbers.")
        if not isinstance(subject, str) or not subject.isprintable() or not subject:
            raise UnauthenticatedError("The token's subject is no text.")
        name = f"token:{subject[:_LONGEST_SUBJECT]}"
        scopes = tuple(_ours(_texts(claims.get(self._rules.scope_claim))))
        return Principal(name, scopes), begins, ends

    def _allowed(self) -> str:
        return f"a token of issuer {self._rules.issuer} for audience {self._rules.audience}"


def _is_instant(value: Any) -> bool:
    # JSON as Python reads it knows NaN, which no comparison ever calls expired.
    return isinstance(value, int | float) and math.isfinite(value)


def _reason(error: Exception) -> str:
    # By its kind: texts of the library may hold parts of the token.
    import jwt

    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"a token without the claim '{error.claim}'"
    return _REASONS.get(type(error).__name__, "no token, or a damaged one")


_REASONS = {
    "InvalidSignatureError": "a signature that does not fit",
    "InvalidAudienceError": "another audience",
    "InvalidIssuerError": "another issuer",
    "InvalidAlgorithmError": "an algorithm that its key is not for",
    "InvalidKeyError": "a key that does not fit",
}


def _texts(claim: Any) -> list[str]:
    found = claim.split() if isinstance(claim, str) else claim
    if not isinstance(found, list):
        return []
    return [text for text in found if isinstance(text, str)]


def _ours(texts: Iterable[str]) -> Iterable[Scope]:
    """Yield the scopes that are ours; tokens hold those of other services as well."""
    for count, text in enumerate(dict.fromkeys(texts)):
        if count >= _MAX_SCOPES:
            return
        if text.partition(":")[0] in {*ACTIONS, "*"}:
            try:
                yield Scope.parse(text)
            except RequestError:
                continue


def check_installed() -> None:
    """Return if tokens can be checked here.

    Raises:
        SettingsError: The library is not installed.
    """
    try:
        import jwt.algorithms
    except ImportError as error:
        raise SettingsError(
            "Tokens cannot be checked without PyJWT.",
            where="serving.jwt_keys",
            hint="pip install 'featurestore[auth]'",
        ) from error
    if not jwt.algorithms.has_crypto:
        raise SettingsError(
            "Tokens cannot be checked without the package 'cryptography'.",
            where="serving.jwt_keys",
            hint="pip install 'featurestore[auth]'",
        )
