"""TLS and mTLS over real handshakes: who is trusted, what is refused, certificates that rotate."""

from __future__ import annotations

import json
import os
import ssl

import pytest

from featurestore.clock import SystemClock
from featurestore.errors import SettingsError, UnauthenticatedError, UnavailableError
from featurestore.model.settings import ServingSettings
from featurestore.serving.client import OnlineClient
from featurestore.serving.security.certificates import CertificateFiles, read_certificates
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import wait_until
from tests.credentials import AUDIENCE, ISSUER, authority, issued, key_set
from tests.served import NOW_US, Served, state, view

USERS = view("users", {"user": "int64"}, {"name": "string"})
ROOT, OTHER = authority(), authority("Other")
SERVER = issued(ROOT, "server")

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def folder(tmp_path):
    SERVER.write(tmp_path)
    ROOT.write(tmp_path, "root")
    OTHER.write(tmp_path, "other")
    return tmp_path


@pytest.fixture
def start(folder):
    servers = []
    served = Served(state([USERS]))
    served.push(USERS, ((1,), NOW_US, ("ann",)))

    def start(**settings):
        merged = {
            "address": "127.0.0.1:0",
            "tls_certificate": "server.pem",
            "tls_key": "server.key",
            "refresh_seconds": 0.05,
            **settings,
        }
        server = FeatureServer(served.reader, ServingSettings(**merged), folder=folder)
        servers.append(server)
        server.start()
        return server.address

    yield start
    for server in servers:
        server.stop()


def name(address, **options):
    options = {"root_certificates": ROOT.pem, "timeout": 10, **options}
    with OnlineClient(address, **options) as client:
        answer = client.get_online_features(["users:name"], {"user": [1]})
        return answer.to_dict()["name"][0]


def serial(address):
    """Return the serial number of the certificate that a server shows."""
    from cryptography.x509 import load_pem_x509_certificate

    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return load_pem_x509_certificate(pem.encode()).serial_number


def test_whom_a_client_trusts(start, folder):
    address = start()
    assert name(address) == name(address, root_certificates=folder / "root.pem") == "ann"
    for options in (
        {"root_certificates": OTHER.pem},
        {"root_certificates": None, "tls": True},
        {"root_certificates": None},
    ):
        with pytest.raises(UnavailableError) as caught:
            name(address, **options)
        assert address in caught.value.what


def test_a_client_in_tls_does_not_speak_to_a_server_in_plain_text(start):
    address = start(tls_certificate=None, tls_key=None)
    with pytest.raises(UnavailableError):
        name(address)


def test_clients_show_a_certificate_where_one_is_wanted(start, folder):
    address = start(tls_client_ca="root.pem")
    mine, late = issued(ROOT, "client"), issued(ROOT, "late", ends=-1)
    stranger = issued(OTHER, "stranger")
    certificate, key = mine.write(folder)
    assert name(address, client_certificate=certificate, client_key=key) == "ann"
    assert name(address, client_certificate=mine.pem, client_key=mine.key_pem) == "ann"
    for pair in (None, late, stranger):
        shown = {} if pair is None else {
            "client_certificate": pair.pem, "client_key": pair.key_pem
        }  # fmt: skip
        with pytest.raises(UnavailableError):
            name(address, **shown)


def test_the_audit_names_the_certificate(start, folder):
    address = start(tls_client_ca="root.pem", audit_log="audit.jsonl")
    mine = issued(ROOT, "client")
    assert name(address, client_certificate=mine.pem, client_key=mine.key_pem) == "ann"
    path = folder / "audit.jsonl"
    wait_until(lambda: path.exists() and path.read_text(), what="the audit")
    line = json.loads(path.read_text())
    assert (line["who"], line["certificate"]) == ("anyone", "localhost")


def test_a_certificate_does_not_stand_for_a_key(start, folder):
    (folder / "jwks.json").write_text(key_set())
    address = start(jwt_keys="jwks.json", jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    with pytest.raises(UnauthenticatedError):
        name(address)


def test_a_new_certificate_is_taken_without_a_restart(start, folder, logs):
    address = start()
    with OnlineClient(address, root_certificates=ROOT.pem) as held:
        held.serving_info()
        assert serial(address) == SERVER.certificate.serial_number
        following = issued(ROOT, "server")
        following.write(folder)
        assert serial(address) == following.certificate.serial_number
        assert name(address) == "ann"
        # Connections that stand are not cut off.
        held.serving_info()
    expiries = [x["expires"] for x in logs if x["event"] == "certificate loaded"]
    assert len(expiries) == 2
    assert all(text.endswith("GMT") for text in expiries)


def test_files_that_are_no_good_leave_the_certificate_that_was(start, folder, logs):
    address = start()
    bad = [
        lambda: (folder / "server.key").write_bytes(OTHER.key_pem),
        lambda: issued(ROOT, "server", ends=-1).write(folder),
        lambda: (folder / "server.pem").write_text("-----BEGIN CERTIFICATE-----\n"),
        (folder / "server.pem").unlink,
    ]
    for number, spoil in enumerate(bad, 1):
        spoil()
        for _ in range(3):
            assert serial(address) == SERVER.certificate.serial_number
        assert name(address) == "ann"
        refused = [x for x in logs if x["event"] == "certificate refused"]
        assert len(refused) == number
        assert str(folder / "server") in refused[-1]["where"]
    following = issued(ROOT, "server")
    following.write(folder)
    assert serial(address) == following.certificate.serial_number


def test_a_link_that_is_turned_to_another_pair_is_followed(start, folder):
    # As secrets are mounted: a link to a folder of both files, which is replaced as one.
    following = issued(ROOT, "server")
    for place, pair in (("old", SERVER), ("new", following)):
        (folder / place).mkdir()
        pair.write(folder / place, "tls")
    (folder / "now").symlink_to("old")
    address = start(tls_certificate="now/tls.pem", tls_key="now/tls.key")
    assert serial(address) == SERVER.certificate.serial_number
    (folder / "next").symlink_to("new")
    (folder / "next").rename(folder / "now")
    assert serial(address) == following.certificate.serial_number


def test_new_roots_of_clients_are_taken_without_a_restart(start, folder):
    address = start(tls_client_ca="root.pem")
    stranger = issued(OTHER, "stranger")
    shown = {"client_certificate": stranger.pem, "client_key": stranger.key_pem}
    with pytest.raises(UnavailableError):
        name(address, **shown)
    (folder / "root.pem").write_bytes(OTHER.pem)
    wait_until(lambda: accepts(address, shown), what="the new roots")


def accepts(address, shown):
    try:
        return name(address, **shown) == "ann"
    except UnavailableError:
        return False


def files(folder, **names):
    found = {"certificate": "server.pem", "key": "server.key", **names}
    return CertificateFiles(**{part: folder / file for part, file in found.items()})


@pytest.mark.parametrize(
    ("names", "says", "where"),
    [
        ({"certificate": "missing.pem"}, "serving.tls_certificate cannot be read", "missing.pem"),
        ({"key": "missing.key"}, "serving.tls_key cannot be read", "missing.key"),
        ({"client_ca": "missing.pem"}, "serving.tls_client_ca cannot be read", "missing.pem"),
        ({"certificate": "noise"}, "no PEM", "noise"),
        ({"key": "other.key"}, "another certificate", "other.key"),
        ({"certificate": "server.key"}, "cannot be read", "server.key"),
        ({"client_ca": "server.key"}, "holds no certificate", "server.key"),
        ({"certificate": "expired.pem", "key": "expired.key"}, "has expired", "expired.pem"),
        ({"certificate": "early.pem", "key": "early.key"}, "not valid yet", "early.pem"),
        ({"key": "locked.key"}, "cannot be read", "locked.key"),
    ],
    ids=range(10),
)
def test_files_that_cannot_be_used_are_named_at_the_start(folder, names, says, where):
    issued(ROOT, "expired", ends=-1).write(folder)
    issued(ROOT, "early", begins=5).write(folder)
    (folder / "noise").write_bytes(os.urandom(100))
    (folder / "locked.key").write_bytes(locked(SERVER.key))
    with pytest.raises(SettingsError, match=says) as caught:
        read_certificates(files(folder, **names))
    assert where in caught.value.where
    assert "PRIVATE" not in f"{caught.value}"


def locked(key):
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


def test_what_was_read_shows_no_key(folder):
    found = read_certificates(files(folder, client_ca="root.pem"))
    assert "PRIVATE" not in repr(found)
    assert found.key == SERVER.key_pem
    assert found.client_ca == ROOT.pem


def test_callers_that_speak_no_tls_do_no_harm(start):
    import socket

    address = start()
    host, _, port = address.rpartition(":")
    clock = SystemClock()
    begun = clock.monotonic()
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(500), os.urandom(999)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(data)
    silent = socket.create_connection((host, int(port)), timeout=10)
    assert name(address) == "ann"
    assert clock.monotonic() - begun < 10
    silent.close()
