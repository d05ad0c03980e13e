"""Certificates, key sets and tokens as tests need them: fresh, expired, for others, or wrong."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from featurestore.clock import SystemClock
from featurestore.semantics.timeline import to_datetime
from tests.served import NOW

ISSUER, AUDIENCE = "https://id.example", "featurestore"
# Handshakes go by the machine's clock.
_TODAY = to_datetime(SystemClock().now_us())
_PEM = serialization.Encoding.PEM


@dataclass
class Pair:
    """A certificate and its key, as PEM and as files."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(_PEM)

    def write(self, folder: Path, name: str = "") -> tuple[Path, Path]:
        """Write both files; return the certificate's and the key's."""
        paths = folder / f"{name or self.name}.pem", folder / f"{name or self.name}.key"
        paths[0].write_bytes(self.pem)
        paths[1].write_bytes(self.key_pem)
        return paths


def authority(name: str = "Root") -> Pair:
    """Return a root certificate."""
    return _issued(name, None, 0, 30)


def issued(by: Pair, name: str, *, begins: float = -1, ends: float = 30) -> Pair:
    """Return a certificate for this machine; its validity is in days from today."""
    return _issued(name, by, begins, ends)


def _issued(name: str, by: Pair | None, begins: float, ends: float) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_TODAY + dt.timedelta(days=begins) - dt.timedelta(days=2))
        .not_valid_after(_TODAY + dt.timedelta(days=ends))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if by is not None:
        here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), here])
        builder = builder.add_extension(names, critical=False)
    return Pair(name, key, builder.sign(key if by is None else by.key, hashes.SHA256()))


RSA = rsa.generate_private_key(65_537, 2_048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
STRANGER = ec.generate_private_key(ec.SECP256R1())
_KINDS = {"RS256": (RSA, RSAAlgorithm), "ES256": (EC, ECAlgorithm), "EdDSA": (ED, OKPAlgorithm)}


def jwk(kid: str, algorithm: str = "ES256", key: Any = None, **more: Any) -> dict[str, Any]:
    """Return the public half of a key as a JWK."""
    held, kind = _KINDS[algorithm]
    public = json.loads(kind.to_jwk((key or held).public_key()))
    return {**{k: v for k, v in public.items() if k != "key_ops"}, "kid": kid, **more}


def key_set(*keys: dict[str, Any]) -> str:
    """Return a key set; by default one of every kind, named by its algorithm."""
    found = keys or tuple(jwk(name, name) for name in _KINDS)
    return json.dumps({"keys": list(found)})


def token(
    kid: str | None = "ES256",
    algorithm: str = "ES256",
    key: Any = None,
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a token that is good but for what is said; claims of None are left out."""
    now = int(NOW.timestamp())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, "scope": "*:shop"}
    said = {name: value for name, value in {**said, **claims}.items() if value is not None}
    head = {**({} if kid is None else {"kid": kid}), **(headers or {})}
    return jwt.encode(said, key or _KINDS[algorithm][0], algorithm, headers=head)
