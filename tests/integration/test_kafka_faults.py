"""Kafka when its broker goes down, comes back, or does not answer."""

import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest

from featurestore.testing.kafka import MockKafka
from featurestore.testing.stream_entries import drain, newest, ordered, payloads
from featurestore.testing.valkey import wait_until
from tests.integration.stream_worker import GROUP
from tests.integration.streaming import (
    DEADLINE,
    SLACK,
    first_deliveries,
    opening,
    took,
    until_it_answers,
)


@pytest.fixture
def opened():
    yield from opening()


@pytest.fixture(scope="module")
def kafka():
    with MockKafka() as mock:
        yield mock


@pytest.mark.slow
def test_a_broker_that_goes_down_and_comes_back(kafka, opened):
    """Calls end by their timeouts; nothing acknowledged is lost."""
    name = uuid4().hex
    kafka.create_topic(name, 2)
    stream = opened(f"{kafka.url}/{name}?fetch.wait.max.ms=50", timeout=1, lease_seconds=5)
    # A producer's first entries wait for its connections, on a busy machine for long.
    until_it_answers(lambda: stream.append(payloads(10)))
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 10)
    kafka.down()
    try:
        assert took(lambda: stream.append([b"x"])) < 1 + SLACK
        # Whether brokers are there is looked at once a second.
        assert took(lambda: until_it_raises(lambda: consumer.poll(1, 0.1))) < 1 + 1 + SLACK
        assert took(lambda: consumer.commit(newest(found))) < 2 + SLACK
        for call in (stream.ping, stream.ends, consumer.lag):
            assert took(call) < 1 + SLACK
    finally:
        kafka.up()
    until_it_answers(lambda: stream.append([b"after"]))
    found += drain_while_gone(consumer, b"after")
    assert {entry.payload for entry in found} >= {*payloads(10), b"after"}
    assert ordered(first_deliveries(found))
    consumer.close()


def test_a_group_that_cannot_be_left_is_let_go(kafka, opened):
    """The driver may wait for its group for ever; whoever closes does not."""
    name = uuid4().hex
    kafka.create_topic(name, 1)
    consumer = opened(f"{kafka.url}/{name}", timeout=0.3, lease_seconds=5).consumer(GROUP, "a")
    driver, gate = consumer._consumer, threading.Event()

    class Hanging:
        def __getattr__(self, name):
            return getattr(driver, name)

        def close(self):
            assert gate.wait(DEADLINE)
            driver.close()

    consumer._consumer = Hanging()
    begun = time.monotonic()
    consumer.close()
    consumer.close()
    assert time.monotonic() - begun < 0.3 + SLACK
    gate.set()


def test_nothing_is_held_any_more_when_a_member_is_closed(kafka, opened):
    """What is given up only while the driver closes may hang it, and with it the interpreter."""
    name = uuid4().hex
    kafka.create_topic(name, 2)
    stream = opened(f"{kafka.url}/{name}", timeout=5)
    stream.append([b"x"])
    consumer = stream.consumer(GROUP, "a")
    wait_until(lambda: consumer.poll(1, 0.1), what="an entry")
    driver, held = consumer._consumer, []

    class Noted:
        def __getattr__(self, name):
            return getattr(driver, name)

        def close(self):
            held.append(driver.assignment())
            driver.close()

    assert driver.assignment()
    consumer._consumer = Noted()
    consumer.close()
    assert held == [[]]


def test_members_leave_at_any_moment():
    """Members that are closed while they join, too; a hang would stop the whole interpreter."""
    command = [sys.executable, "-m", "tests.integration.kafka_leaver", "25"]
    left = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=True, text=True)  # noqa: S603
    assert left.stdout == "left\n"


def test_a_broker_that_does_not_answer(kafka, opened):
    name = uuid4().hex
    kafka.create_topic(name, 1)
    stream = opened(f"{kafka.url}/{name}", timeout=0.3)
    kafka.delay(3_000)
    try:
        assert took(lambda: stream.append([b"x"])) < 0.3 + SLACK
        assert took(stream.ping) < 0.3 + SLACK
    finally:
        kafka.delay(0)


def until_it_raises(call):
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        call()


def drain_while_gone(consumer, last):
    found = []
    end = time.monotonic() + DEADLINE
    while not any(entry.payload == last for entry in found):
        assert time.monotonic() < end
        found += until_it_answers(lambda: consumer.poll(100, 0.1))
    return found
