"""Joins and leaves groups at all moments: python -m tests.integration.kafka_leaver ROUNDS.

In a process of its own, as a driver that hangs while it closes holds the interpreter's lock.
"""

from __future__ import annotations

import random
import sys
from uuid import uuid4

from featurestore.adapters.kafka import KafkaEventStream
from featurestore.testing.kafka import MockKafka

WAITS = (0, 0.01, 0.05, 0.2)


def main(rounds: int) -> None:
    chance = random.Random(rounds)  # noqa: S311
    with MockKafka() as kafka:
        name = uuid4().hex
        kafka.create_topic(name, 3)
        stream = KafkaEventStream.from_url(f"{kafka.url}/{name}?fetch.wait.max.ms=50")
        stream.append([b"x"] * 20)
        for _ in range(rounds):
            members = [stream.consumer(uuid4().hex, "a")]
            members.append(stream.consumer(uuid4().hex, "b"))
            for member in (*members, *members):
                if chance.random() < 0.7:
                    member.poll(10, chance.choice(WAITS))
            for member in members:
                member.close()
        stream.close()
    print("left")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
