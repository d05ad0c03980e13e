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


@pytest.mark.parametrize(
    ("url", "label", "hosts", "tls", "replicas"),
    [
        ("redis+sentinel://a/s", "redis+sentinel://a:26379/s", [("a", 26379)], False, 1),
        (
            "redis+sentinel://u:p%40ss@a:1,[::1]:2,b/my-service/3",
            "redis+sentinel://u@a:1,[::1]:2,b:26379/my-service/3",
            [("a", 1), ("::1", 2), ("b", 26379)],
            False,
            1,
        ),
        (
            "rediss+sentinel://a:1/s/0?replicas=0&ssl_ca_certs=/c.pem",
            "rediss+sentinel://a:1/s",
            [("a", 1)],
            True,
            0,
        ),
        ("redis+sentinel://a:1/s?replicas=2", "redis+sentinel://a:1/s", [("a", 1)], False, 2),
    ],
)
def test_urls_of_sentinels(url, label, hosts, tls, replicas):
    location = parse_location(url, None, None, sentinel_login=("watcher", "s3cret"))
    assert (location.label, list(location.sentinels), location.tls) == (label, hosts, tls)
    assert location.service in {"s", "my-service"}
    assert location.replicas == replicas
    login = {"username": "watcher", "password": "s3cret"}
    assert location.sentinel_options.items() >= login.items()
    assert location.sentinel_options.get("ssl_ca_certs") == location.options.get("ssl_ca_certs")
    assert "s3cret" not in repr(location)
    assert location.scrub("no s3cret, p@ss") == (
        "no ***, ***" if "p%40ss" in url else "no ***, p@ss"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://u:s3cret@a:1", "cannot be read"),
        ("redis+sentinel://u:s3cret@a:1/", "cannot be read"),
        ("redis+sentinel://u:s3cret@/s", "cannot be read"),
        ("redis+sentinel://u:s3cret@a:1,/s", "cannot be read"),
        ("redis+sentinel://u:s3cret@a:1,b:port/s", "cannot be read"),
        ("redis+sentinel://u:s3cret@a,u:s3cret@b/s", "cannot be read"),
        ("redis+sentinel://u:s3cret@a:1/s/x", "database number"),
        ("redis+sentinel://u:s3cret@a:1/s?replicas=x", "option 'replicas'"),
        ("redis+sentinel://u:s3cret@a:1/s?replicas=-1", "option 'replicas'"),
        ("redis+sentinel://u:s3cret@a:1/s?replicas=", "option 'replicas'"),
        ("redis+sentinel://u:s3cret@a:1/s?replicas=101", "option 'replicas'"),
    ],
)
def test_urls_of_sentinels_that_are_refused(url, message):
    test_refused(url, message)


def test_replicas_are_waited_for_where_it_is_asked_for():
    assert parse_location("redis://h", None, None).replicas == 0
    assert parse_location("redis+cluster://h?replicas=1", None, None).replicas == 1
    location = parse_location("redis://h?replicas=2", None, None)
    assert location.replicas == 2
    assert location.options == {}
    assert location.label == "redis://h:6379"
