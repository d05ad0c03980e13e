"""Tokens: who issued them, for whom, by which key and algorithm, and from when to when."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from featurestore.clock import FixedClock
from featurestore.errors import SettingsError, UnauthenticatedError, UnavailableError
from featurestore.serving.security.key_sets import KeySet, usable
from featurestore.serving.security.tokens import TokenChecker, TokenRules
from featurestore.testing.valkey import wait_until
from tests.credentials import AUDIENCE, EC, ISSUER, RSA, STRANGER, jwk, key_set, token
from tests.served import NOW, NOW_US

SECONDS = int(NOW.timestamp())


@pytest.fixture
def clock():
    return FixedClock(NOW_US)


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(key_set())
    return path


@pytest.fixture
def checker(place, clock):
    rules = TokenRules(ISSUER, AUDIENCE, leeway_seconds=5)
    return TokenChecker(KeySet(place, clock), rules, clock)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_good_tokens_say_who_and_what(checker, algorithm):
    shown = token(algorithm, algorithm, scope="read_online:shop openid write:shop/source/x write:")
    for _ in range(2):
        principal = checker.principal(shown)
        assert principal.name == "token:ann"
        assert [s.text for s in principal.scopes] == ["read_online:shop", "write:shop/source/x"]


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": None}, []),
        ({"scope": ["apply:a", 7, "x"]}, ["apply:a"]),
        ({"scope": {"a": 1}}, []),
        ({"aud": ["x", AUDIENCE]}, ["*:shop"]),
    ],
)
def test_scopes_come_as_text_or_list_and_others_are_left_out(checker, claims, scopes):
    assert [s.text for s in checker.principal(token(**claims)).scopes] == scopes


def unsigned(head, **claims):
    parts = ({"typ": "JWT", **head}, {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann",
             "exp": SECONDS + 60, **claims})  # fmt: skip
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts]
    return b".".join([*coded, b""]).decode()


def shared_secret():
    """Return a token signed by the public key as if it were a shared secret."""
    import hashlib
    import hmac

    body = unsigned({"alg": "HS256", "kid": "RS256"}).rstrip(".")
    secret = json.dumps(jwk("RS256", "RS256")).encode()
    mac = hmac.new(secret, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


REFUSED = {
    "nonsense": ("nonsense", "damaged"),
    "empty parts": ("..", "damaged"),
    "another audience": (token(aud="other"), "another audience"),
    "no audience": (token(aud=None), "'aud'"),
    "another issuer": (token(iss="https://evil.example"), "another issuer"),
    "no issuer": (token(iss=None), "'iss'"),
    "no expiry": (token(exp=None), "'exp'"),
    "no subject": (token(sub=None), "'sub'"),
    "another key": (token(key=STRANGER), "signature"),
    "unknown kid": (token("unknown"), "unknown"),
    "no kid": (token(None), "without kid"),
    "none": (unsigned({"alg": "none", "kid": "ES256"}), "algorithm"),
    "HS256": (shared_secret(), "algorithm"),
    "another algorithm of the key": (
        jwt.encode(
            {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": SECONDS + 60}, RSA, "RS512",
            headers={"kid": "RS256"}),
        "algorithm",
    ),
    "key of another kind": (token("RS256", "ES256", key=EC), "algorithm"),
    "critical head": (token(headers={"crit": ["x"], "x": 1}), "token"),
    "kid of no text": (unsigned({"alg": "ES256", "kid": 7}), "damaged"),
    "long": (token(scope="x" * 9_000), "too long"),
    "subject with a line break": (token(sub="a\nb"), "subject"),
    "expiry of no number": (token(exp=float("nan")), "numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_token_is_told_and_the_token_is_not(checker, case):
    shown, says = REFUSED[case]
    with pytest.raises(UnauthenticatedError) as caught:
        checker.principal(shown)
    told = f"{caught.value}"
    assert says in told
    assert not any(part in told for part in shown.split(".") if len(part) > 8)


def test_tokens_are_valid_from_when_to_when_with_a_leeway(checker, clock):
    shown = token(nbf=SECONDS + 10, exp=SECONDS + 60)
    for second, fits in ((0, False), (4, False), (5, True), (60, True), (64, True), (65, False)):
        clock.set(NOW_US + second * 1_000_000)
        if fits:
            checker.principal(shown)
        else:
            with pytest.raises(UnauthenticatedError, match=r"expired|not valid yet"):
                checker.principal(shown)


def test_keys_that_come_and_go_are_noticed(checker, place, clock):
    late = token("new", key=STRANGER)
    with pytest.raises(UnauthenticatedError):
        checker.principal(late)
    checker.principal(token())
    place.write_text(key_set(jwk("new", key=STRANGER)))
    with pytest.raises(UnauthenticatedError):
        checker.principal(late)
    clock.advance(10_000_000)
    assert checker.principal(token("new", key=STRANGER)).name == "token:ann"
    # What was found good by a key that is gone is good no more.
    with pytest.raises(UnauthenticatedError, match="not known"):
        checker.principal(token())


def test_old_keys_are_asked_for_again_in_the_background(checker, place, clock):
    shown = token(exp=SECONDS + 3_600)
    checker.principal(shown)
    place.write_text(key_set(jwk("new", key=STRANGER)))
    checker.keys.refresh()
    clock.advance(300_000_000)
    before = checker.keys.current
    checker.keys.refresh()
    wait_until(lambda: checker.keys.current is not before, what="the new keys")
    with pytest.raises(UnauthenticatedError, match="not known"):
        checker.principal(shown)


def test_a_key_set_that_is_damaged_later_leaves_the_keys(checker, place, clock):
    place.write_text("{")
    clock.advance(300_000_000)
    checker.keys.refresh()
    wait_until(lambda: checker.keys.last_error is not None, what="the error")
    assert checker.principal(token(exp=SECONDS + 3_600)).name == "token:ann"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"keys": []}', '{"keys": [1]}', '{"keys": {}}', key_set({"kty": "oct"})],
)
def test_what_is_no_key_set_is_refused_at_once(place, clock, text):
    place.write_text(text)
    with pytest.raises(SettingsError, match="key") as caught:
        KeySet(place, clock)
    assert caught.value.where == str(place)


WEAK = rsa.generate_private_key(65_537, 1_024)  # noqa: S505  (that is the point)


@pytest.mark.parametrize(
    "item",
    [
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        jwk("x", "RS256", use="enc"),
        jwk("x", "RS256", alg="RS512"),
        jwk("x", "RS256", alg="HS256"),
        jwk("x", "RS256", key=WEAK),
        {"kty": "EC", "crv": "P-256"},
        {"kty": "EC", "crv": "P-521"},
        {},
    ],
    ids=range(8),
)
def test_keys_that_are_weak_or_secret_or_for_something_else_are_left_out(item):
    assert usable(item) is None


def test_a_private_key_in_a_key_set_is_used_for_its_public_half_alone():
    from jwt.algorithms import ECAlgorithm

    key, algorithm = usable({**json.loads(ECAlgorithm.to_jwk(EC)), "kid": "x"})
    assert algorithm == "ES256"
    assert not hasattr(key.key, "sign")


@pytest.mark.parametrize("url", ["http://id.example/keys", "http://localhost.evil.example/"])
def test_keys_over_plain_http_are_refused(clock, url):
    with pytest.raises(SettingsError, match="https"):
        KeySet(url, clock)


class Publisher(ThreadingHTTPServer):
    """Publishes a key set, or what it is told to."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.body, self.status, self.asked = key_set(), 200, 0
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_port}/keys"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Page(BaseHTTPRequestHandler):
    """The page of a publisher."""

    def do_GET(self):
        self.server.asked += 1
        self.server.gate.wait(20)
        self.send_response(self.server.status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def publisher():
    server = Publisher()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


def test_strangers_make_us_ask_a_bounded_number_of_times(publisher, clock):
    keys = KeySet(publisher.url, clock)
    rules = TokenRules(ISSUER, AUDIENCE)
    checker = TokenChecker(keys, rules, clock)
    checker.principal(token())
    for number in range(50):
        with pytest.raises(UnauthenticatedError):
            checker.principal(token(f"kid{number}"))
    assert publisher.asked == 1
    clock.advance(10_000_000)
    for number in range(50):
        with pytest.raises(UnauthenticatedError):
            checker.principal(token(f"kid{number}"))
    assert publisher.asked == 2


def test_while_one_asks_the_others_do_not_wait(publisher, clock):
    checker = TokenChecker(KeySet(publisher.url, clock), TokenRules(ISSUER, AUDIENCE), clock)
    publisher.gate.clear()
    clock.advance(10_000_000)
    publisher.body = key_set(jwk("new", key=STRANGER))
    shown = token("new", key=STRANGER)
    found = []
    thread = threading.Thread(target=lambda: found.append(checker.principal(shown)))
    thread.start()
    wait_until(lambda: publisher.asked == 2, what="the question")
    assert checker.principal(token()).name == "token:ann"
    with pytest.raises(UnavailableError) as caught:
        checker.principal(shown)
    assert caught.value.retry_seconds == 1
    publisher.gate.set()
    thread.join(20)
    assert found[0].name == checker.principal(shown).name == "token:ann"


@pytest.mark.parametrize(
    ("status", "body"), [(500, ""), (302, ""), (200, "{"), (200, " " * (1 << 20) + key_set())]
)
def test_a_publisher_in_trouble_lets_nobody_in(publisher, clock, status, body):
    publisher.status, publisher.body = status, body
    try:
        keys = KeySet(publisher.url, clock)
    except SettingsError as error:
        told = (status, error.where)
        assert told == (200, publisher.url)
        return
    assert isinstance(keys.last_error, UnavailableError)
    checker = TokenChecker(keys, TokenRules(ISSUER, AUDIENCE), clock)
    with pytest.raises(UnauthenticatedError):
        checker.principal(token())
    publisher.status, publisher.body = 200, key_set()
    clock.advance(10_000_000)
    assert checker.principal(token()).name == "token:ann"


def test_a_publisher_that_is_gone_is_not_waited_for_at_the_start(publisher, clock):
    publisher.shutdown()
    publisher.server_close()
    assert "cannot be fetched" in KeySet(publisher.url, clock).last_error.what
