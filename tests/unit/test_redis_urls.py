"""The URL of a Redis: what is taken, what is refused, and that no password is ever shown."""

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.redis.location import parse_location
from featurestore.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "label", "cluster", "tls", "options"),
    [
        ("redis://h", "redis://h:6379", False, False, {}),
        ("redis://", "redis://localhost:6379", False, False, {}),
        ("redis://h:1/0", "redis://h:1", False, False, {"db": 0}),
        ("redis://h:1/5", "redis://h:1/5", False, False, {"db": 5}),
        ("redis://[::1]:1", "redis://[::1]:1", False, False, {}),
        ("rediss://h:1", "rediss://h:1", False, True, {}),
        (
            "rediss://h:1?ssl_ca_certs=/c.pem&ssl_check_hostname=no",
            "rediss://h:1",
            False,
            True,
            {"ssl_ca_certs": "/c.pem", "ssl_check_hostname": False},
        ),
        ("redis+cluster://h:1", "redis+cluster://h:1", True, False, {}),
        ("redis+cluster://h:1/0", "redis+cluster://h:1", True, False, {}),
        ("rediss+cluster://h", "rediss+cluster://h:6379", True, True, {}),
        (
            "redis://u:p%40ss@h:1",
            "redis://u@h:1",
            False,
            False,
            {"username": "u", "password": "p@ss"},
        ),
        ("redis://:pass@h:1", "redis://h:1", False, False, {"password": "pass"}),
    ],
)
def test_urls(url, label, cluster, tls, options):
    location = parse_location(url, None, None)
    assert (location.label, location.cluster, location.tls) == (label, cluster, tls)
    assert location.options == options


def test_arguments_go_before_the_url():
    location = parse_location("redis://u:p@h:1", "user", "secret")
    assert location.options == {"username": "user", "password": "secret"}
    assert location.label == "redis://user@h:1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://h", "no kind"),
        ("localhost:6379", "no kind"),
        ("unix:///tmp/redis.sock", "no kind"),
        ("redis://u:s3cret@h:port", "cannot be read"),
        ("redis://u:s3cret@h:99999999", "cannot be read"),
        ("redis://u:s3cret@[h:1", "cannot be read"),
        ("redis://u:s3cret@h/x", "database number"),
        ("redis://u:s3cret@h/-1", "database number"),
        ("redis+cluster://u:s3cret@h/1", "database number"),
        ("redis://u:s3cret@h?socket_timeout=3", "option 'socket_timeout'"),
        ("redis://u:s3cret@h?ssl_ca_certs=x", "option 'ssl_ca_certs'"),
        ("rediss://u:s3cret@h?ssl_ca_cert=x", "option 'ssl_ca_cert'"),
        ("rediss://h?password=s3cret", "option 'password'"),
    ],
)
def test_refused(url, message):
    with pytest.raises(SettingsError, match=message) as caught:
        RedisOnlineStore.from_url(url)
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.where == "[online] url"
    assert caught.value.allowed


def test_a_slip_is_named():
    with pytest.raises(SettingsError, match="Did you mean 'ssl_ca_certs'"):
        RedisOnlineStore.from_url("rediss://h?ssl_ca_cert=x")


def test_nothing_shows_a_password():
    store = RedisOnlineStore.from_url("redis://u:s3cret@h:1/2")
    location = parse_location("redis://u:s3cret@h:1/2", None, None)
    assert repr(store) == "RedisOnlineStore('redis://u@h:1/2')"
    assert "s3cret" not in repr(location)
    assert location.scrub("said s3cret aloud") == "said *** aloud"
    assert parse_location("redis://h", None, None).scrub("as it was") == "as it was"
