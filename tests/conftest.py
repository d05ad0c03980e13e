"""Parts that many tests share: real Valkey servers, one set a worker."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import structlog
from structlog.testing import capture_logs

from featurestore.testing.valkey import ValkeyCluster, ValkeyServer


@dataclass(frozen=True)
class ExternalServer:
    """A Redis or Valkey that somebody else runs. Tests delete what they wrote, nothing else."""

    url: str


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer | ExternalServer]:
    """A server with a `url`: our own on a free port, or that of FEATURESTORE_TEST_REDIS_URL."""
    url = os.environ.get("FEATURESTORE_TEST_REDIS_URL")
    if url:
        yield ExternalServer(url)
        return
    with ValkeyServer() as server:
        yield server


@pytest.fixture(params=["memory", "lmdb", "redis", "redis+cluster"])
def online_url(request: pytest.FixtureRequest) -> str:
    """The URL of an online store, once for each kind."""
    if request.param == "redis":
        return str(request.getfixturevalue("valkey").url)
    if request.param == "redis+cluster":
        return str(request.getfixturevalue("valkey_cluster").url)
    return {"memory": "memory:", "lmdb": "lmdb:data/online"}[request.param]


@pytest.fixture(params=["lmdb", "redis"])
def durable_online_url(request: pytest.FixtureRequest) -> str:
    """The URL of an online store that outlives the process that writes to it."""
    if request.param == "redis":
        return str(request.getfixturevalue("valkey").url)
    return "lmdb:data/online"


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[ValkeyCluster]:
    """Three real servers that share the slots."""
    with ValkeyCluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _logs_as_at_first() -> Iterator[None]:
    """Undo what a command has set: its standard error may be closed when the next test logs."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What is logged in this process, instead of being printed."""
    with capture_logs() as logs:
        yield logs
