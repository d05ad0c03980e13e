"""API keys: made once, kept as hashes, refused when expired or revoked, and never shown again."""

from __future__ import annotations

import json
import threading

import pytest

from featurestore.access.key_ring import KeyRing
from featurestore.access.keys import KeyFile, split_key
from featurestore.clock import FixedClock
from featurestore.errors import (
    FeatureNotFoundError,
    RequestError,
    SettingsError,
    StorageError,
    UnauthenticatedError,
)
from tests.served import NOW_US

SCOPES = ["read_online:shop"]


@pytest.fixture
def clock():
    return FixedClock(NOW_US)


@pytest.fixture
def file(tmp_path, clock):
    return KeyFile(tmp_path / "keys" / "keys.json", clock)


def test_a_key_is_256_random_bits_behind_its_id(file):
    made = [file.create("a", SCOPES)[0] for _ in range(20)]
    parts = [split_key(key) for key in made]
    assert len({ident for ident, _ in parts}) == len({secret for _, secret in parts}) == 20
    assert all(len(bytes.fromhex(secret)) == 32 for _, secret in parts)


def test_only_a_hash_is_kept_and_its_file_is_the_owners_alone(file):
    key, record = file.create("shop", SCOPES, NOW_US + 1)
    ident, secret = split_key(key)
    text = file.path.read_text()
    assert secret not in text
    assert secret not in repr(record)
    assert record.hash not in repr(record)
    assert file.read() == {ident: record}
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in file.path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_who_was_let_read_the_file_may_go_on(file):
    file.create("a", SCOPES)
    for mode, kept in ((0o640, 0o640), (0o644, 0o644), (0o666, 0o644), (0o400, 0o600)):
        file.path.chmod(mode)
        file.create("a", SCOPES)
        assert file.path.stat().st_mode & 0o777 == kept


def test_a_mounted_link_stays_a_link(file, tmp_path):
    file.path.parent.mkdir()
    file.path.symlink_to(tmp_path / "real.json")
    file.create("a", SCOPES)
    assert file.path.is_symlink()
    assert len(file.read()) == 1


def test_keys_that_are_made_at_once_are_all_kept(file):
    threads = [threading.Thread(target=file.create, args=("a", SCOPES)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read()) == 16


@pytest.mark.parametrize(
    ("name", "scopes", "expires", "says"),
    [
        ("a", [], None, "allows nothing"),
        ("a", ["read"], None, "no scope"),
        ("", SCOPES, None, "no name"),
        ("a\nb", SCOPES, None, "no name"),
        ("a" * 101, SCOPES, None, "no name"),
        ("a", SCOPES, NOW_US, "expired before"),
    ],
)
def test_what_makes_no_key_is_refused(file, name, scopes, expires, says):
    with pytest.raises(RequestError, match=says):
        file.create(name, scopes, expires)
    assert file.read() == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{}]}',
     '{"version": 1, "keys": {"a": 1}}', "\xff"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_not_written_over(file, text):
    file.path.parent.mkdir()
    file.path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match="cannot be read") as caught:
        file.create("a", SCOPES)
    assert caught.value.where == str(file.path)
    assert file.path.read_text(encoding="latin-1") == text


@pytest.mark.parametrize(
    "change",
    [{"hash": "short"}, {"hash": 1}, {"expires_us": "1"}, {"scopes": ["x"]}, {"more": 1},
     {"created_us": True}],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_damage(file, change):
    file.create("a", SCOPES)
    data = json.loads(file.path.read_text())
    data["keys"][0] |= change
    file.path.write_text(json.dumps(data))
    with pytest.raises(SettingsError):
        file.read()


def test_a_place_that_cannot_be_written_is_named(tmp_path, clock):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        KeyFile(tmp_path / "file" / "keys.json", clock).create("a", SCOPES)


def test_who_shows_a_key_is_known(file, clock):
    key, record = file.create("shop", SCOPES)
    principal = KeyRing(file, clock).principal(key)
    assert principal.name == f"key:{record.id} (shop)"
    assert [scope.text for scope in principal.scopes] == SCOPES


def refused(ring, key, says):
    with pytest.raises(UnauthenticatedError, match=says) as caught:
        ring.principal(key)
    secret = key.rpartition("_")[2]
    assert not secret or secret not in f"{caught.value} {caught.value.__dict__}"


def test_keys_that_are_none_of_ours_are_refused(file, clock):
    key, record = file.create("shop", SCOPES)
    ring = KeyRing(file, clock)
    refused(ring, key[:-1] + ("0" if key[-1] != "0" else "1"), "not known")
    refused(ring, key.replace(record.id, "0" * 12), "not known")
    for wrong in ("nonsense", key[:-1], key + "0", key.upper(), f"{key}\n", "fs__", key + "\0"):
        refused(ring, wrong, "none of ours")


def test_expiry_and_revocation(file, clock):
    key, _ = file.create("short", SCOPES, NOW_US + 10)
    other, record = file.create("other", SCOPES)
    ring = KeyRing(file, clock)
    ring.principal(key)
    clock.advance(9)
    ring.principal(key)
    clock.advance(1)
    refused(ring, key, "has expired")
    ring.principal(other)
    first = file.revoke(record.id)
    ring.refresh()
    refused(ring, other, "was revoked")
    clock.advance(1)
    assert file.revoke(other) == first
    with pytest.raises(FeatureNotFoundError, match="No key"):
        file.revoke("nobody")


def test_a_file_that_is_gone_lets_nobody_in_and_a_damaged_one_changes_nothing(file, clock):
    key, _ = file.create("shop", SCOPES)
    ring = KeyRing(file, clock)
    good = file.path.read_text()
    file.path.write_text("{")
    ring.refresh()
    assert "cannot be read" in ring.last_error.what
    ring.principal(key)
    file.path.unlink()
    ring.refresh()
    refused(ring, key, "not known")
    file.path.write_text(good)
    ring.refresh()
    assert ring.last_error is None
    ring.principal(key)


def test_a_ring_does_not_begin_with_a_damaged_file(file, clock):
    file.path.parent.mkdir()
    file.path.write_text("{")
    with pytest.raises(SettingsError):
        KeyRing(file, clock)
