"""The client for asyncio: answers and errors of the blocking one, and many calls at once."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from featurestore import AsyncOnlineClient, OnlineClient
from featurestore.access.keys import KeyFile
from featurestore.errors import (
    DeadlineExceededError,
    FeatureNotFoundError,
    FeatureStoreError,
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    SettingsError,
    UnauthenticatedError,
    UnavailableError,
)
from featurestore.model.settings import ServingSettings
from featurestore.services.pushing_events import PushReceipt
from featurestore.serving.client_calls import SERVICE
from featurestore.serving.server import FeatureServer
from tests.credentials import authority, issued
from tests.integration.test_grpc_serving import EVERY, FULL, NAIVE, NULLS, STATE, USERS, same_bits
from tests.served import EVERY_TYPE, NOW, NOW_US, Served

ROOT = authority()

pytestmark = pytest.mark.usefixtures("logs")


class Gate:
    """An observer that holds calls back until it is opened."""

    def __init__(self):
        self.calls = []
        self.open = threading.Event()
        self.open.set()

    def begun(self, call):
        self.calls.append(call.id)
        assert self.open.wait(20)

    def answered(self, call, asked, answer):
        pass

    def ended(self, call, status, error):
        pass

    def close(self):
        pass


class Sink:
    def push(self, source, events, **_):
        return PushReceipt(events.num_rows, {source: 7})


class World:
    def __init__(self):
        self.served = Served(STATE)
        self.served.push(EVERY, ((1,), NOW_US, FULL), ((2,), NOW_US, NULLS))
        self.served.push(USERS, *(((i,), NOW_US, (i / 7, f"n{i}")) for i in range(200)))
        self.gate = Gate()
        self.servers = []

    def start(self, folder=None, address="127.0.0.1:0", **settings):
        given = {"refresh_seconds": 0.05, "drain_seconds": 5.0, **settings}
        server = FeatureServer(
            self.served.reader,
            ServingSettings(address=address, **given),
            folder=folder,
            events=Sink(),
            observers=[self.gate],
        )
        self.servers.append(server)
        return server.start()


@pytest.fixture
def world(tmp_path):
    world = World()
    world.folder = tmp_path
    yield world
    world.gate.open.set()
    for server in world.servers:
        server.stop()


def run(address, work, **options):
    async def main():
        async with AsyncOnlineClient(address, **{"timeout": 10, **options}) as client:
            return await work(client)

    return asyncio.run(main())


def test_it_is_called_as_the_blocking_one_is():
    for name in ("__init__", "get_online_features", "push", "serving_info", "close"):
        one, other = (
            inspect.signature(getattr(cls, name)) for cls in (OnlineClient, AsyncOnlineClient)
        )
        assert one.parameters == other.parameters, name


def test_it_answers_as_the_blocking_one_does(world):
    address = world.start()

    async def work(client):
        return (
            await client.get_online_features(["every"], {"k": [1, 2, 3]}, as_of=NOW),
            await client.push("clicks", [{"id": 1}, {"id": 2}]),
            await client.serving_info(),
        )

    answer, receipt, info = run(address, work)
    with OnlineClient(address) as client:
        expected = client.get_online_features(["every"], {"k": [1, 2, 3]}, as_of=NOW)
        assert receipt == client.push("clicks", [{"id": 1}, {"id": 2}])
        assert info.views == client.serving_info().views
    table, other = answer.to_arrow(), expected.to_arrow()
    assert table.schema.equals(other.schema)
    assert all(same_bits(table[name], other[name]) for name in EVERY_TYPE)
    assert (answer.statuses, answer.fingerprints) == (expected.statuses, expected.fingerprints)


@pytest.mark.parametrize(
    ("features", "rows", "error"),
    [
        (["users:scor"], {"user": [1]}, FeatureNotFoundError),
        (["users:score"], {"usr": [1]}, MissingColumnError),
        (["users:score"], {"user": [NAIVE]}, NaiveTimestampError),
        (["users:score"], {"user": ["1"]}, RequestError),
        (["users:score"], 5, RequestError),
        (None, {"user": [1]}, RequestError),
    ],
    ids=range(6),
)
def test_it_fails_as_the_blocking_one_does(world, features, rows, error):
    address = world.start()

    async def work(client):
        await client.get_online_features(features, rows, as_of=NOW)

    with pytest.raises(error) as here:
        run(address, work)
    with OnlineClient(address) as client, pytest.raises(error) as there:
        client.get_online_features(features, rows, as_of=NOW)
    assert type(here.value) is type(there.value)
    assert here.value.__dict__ == there.value.__dict__


def test_many_lookups_at_once(world):
    address = world.start()

    async def work(client):
        keys = range(200)
        asked = [client.get_online_features(["users:score"], {"user": [k]}) for k in keys]
        answers = await asyncio.gather(*asked)
        return [answer.to_dict() for answer in answers]

    found = run(address, work)
    assert found == [{"user": [k], "score": [k / 7]} for k in range(200)]


def test_others_run_while_a_lookup_waits_and_its_deadline_ends_it(world):
    address = world.start()
    world.gate.open.clear()

    async def work(client):
        asked = asyncio.create_task(
            client.get_online_features(["users:score"], {"user": [1]}, timeout=0.3)
        )
        turns = 0
        while not asked.done():
            turns += 1
            await asyncio.sleep(0)
        with pytest.raises(DeadlineExceededError):
            await asked
        return turns

    assert run(address, work) > 10
    world.gate.open.set()


def test_who_cancels_the_task_cancels_the_call(world):
    address = world.start(threads=1)
    world.gate.open.clear()

    async def work(client):
        asked = [
            asyncio.create_task(client.get_online_features(["users:score"], {"user": [k]}))
            for k in range(3)
        ]
        while not world.gate.calls:
            await asyncio.sleep(0.005)
        for task in asked:
            task.cancel()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        world.gate.open.set()
        # The client is as good as before.
        after = await client.get_online_features(["users:score"], {"user": [7]})
        return ended, after.to_dict()["score"]

    ended, after = run(address, work)
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 3
    assert after == [1.0]


def test_a_client_that_is_closed_says_so(world):
    address = world.start()
    world.gate.open.clear()

    async def main():
        client = AsyncOnlineClient(address)
        asked = asyncio.create_task(client.get_online_features(["users:score"], {"user": [1]}))
        while not world.gate.calls:
            await asyncio.sleep(0.005)
        await client.close()
        with pytest.raises(UnavailableError, match="closed"):
            await asked
        with pytest.raises(UnavailableError, match="closed"):
            await client.serving_info()
        await client.close()
        assert "AsyncOnlineClient" in repr(client)

    asyncio.run(main())


def test_nobody_there():
    async def work(client):
        await client.serving_info(timeout=1)

    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
        run("127.0.0.1:1", work)
    assert "featurestore serve" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "tries"), [("serving_info", 4), ("get_online_features", 4), ("push", 1)]
)
def test_a_call_that_no_server_has_answered_is_tried_again_but_a_push_is_not(name, tries):
    """A server that refuses every call on its way, as one does that is just being stopped."""
    asked = []

    def refuse(request, context):
        asked.append(request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    handlers = {
        method: grpc.unary_unary_rpc_method_handler(refuse)
        for method in ("GetServingInfo", "GetOnlineFeatures", "Push")
    }
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    arguments = {"get_online_features": ("s", {"k": [1]}), "push": ("s", [{"id": 1}])}

    async def work(client):
        await getattr(client, name)(*arguments.get(name, ()))

    try:
        with pytest.raises(UnavailableError):
            run(f"127.0.0.1:{port}", work)
    finally:
        server.stop(None)
    assert len(asked) == tries


def test_keys_and_certificates(world):
    folder = world.folder
    issued(ROOT, "server").write(folder)
    ROOT.write(folder, "root")
    keys = KeyFile(folder / "keys.json", world.served.clock)
    secret, _ = keys.create("a", ("read_online:shop",))
    address = world.start(
        folder,
        keys_file="keys.json",
        tls_certificate="server.pem",
        tls_key="server.key",
        tls_client_ca="root.pem",
    )
    mine = issued(ROOT, "client")
    options = {
        "root_certificates": folder / "root.pem",
        "client_certificate": mine.pem,
        "client_key": mine.key_pem,
    }

    async def work(client):
        return (await client.get_online_features(["users:name"], {"user": [1]})).to_dict()["name"]

    assert run(address, work, api_key=secret, **options) == ["n1"]
    assert run(address, work, token=lambda: secret, **options) == ["n1"]
    with pytest.raises(UnauthenticatedError):
        run(address, work, **options)
    with pytest.raises(UnavailableError):
        run(address, work, api_key=secret, root_certificates=ROOT.pem)


def test_what_makes_no_sense_is_told_before_anything_is_sent():
    with pytest.raises(SettingsError, match="plain text"):
        AsyncOnlineClient("db.example:6566", api_key="fs_1")
    with pytest.raises(SettingsError) as caught:
        AsyncOnlineClient("localhost:1", api_key="fs_1", token="t")  # noqa: S106
    assert caught.value.where == "AsyncOnlineClient"
    with pytest.raises(FeatureStoreError):
        AsyncOnlineClient("localhost:1", tls=False, client_key=b"x")
