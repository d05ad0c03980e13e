"""What goes on beside the load: events, new rows, new definitions, and answers that are compared.

Each is a thread that works until it is told to end; what fails is counted by kind and never raised.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import ROOT, clean_environment
from benchmarks.soak.checking import Checker, Row
from benchmarks.soak.repository import (
    MARKED,
    REFERENCES,
    SOURCE,
    USERS,
    Edition,
    Repository,
    events,
)
from featurestore import OnlineClient
from featurestore.errors import FeatureStoreError
from featurestore.services.response import OnlineResponse
from featurestore.testing.valkey import wait_until

_COMMAND_SECONDS = 120
# The exit code that says so.
_TRY_AGAIN, _TRIES = 4, 5
_EVENTS_A_PUSH = 20
_CHANGED_USERS = 200
# The events of the history have smaller numbers.
_FIRST_EVENT = 10**9
# A client stays with one worker: another one may meet another.
_ANSWERS_A_CLIENT = 40


@dataclass
class Beat:
    """How often the actors act.

    Attributes:
        events: Pushed a second.
        materialize: Seconds between two materializations.
        change: Seconds between two changes of the definitions.
        check: Seconds between two answers that are compared.
    """

    events: float = 300.0
    materialize: float = 5.0
    change: float = 20.0
    check: float = 0.05


class Actors:
    """The threads.

    Args:
        repository: What they change.
        address: Of the server.
        beat: How often they act.

    Attributes:
        checker: What the answers came to.
        errors: What failed, by actor and kind.
        counts: What was done, by name.
    """

    def __init__(self, repository: Repository, address: str, beat: Beat) -> None:
        self.checker = Checker(MARKED)
        self.errors: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._repository = repository
        self._address = address
        self._beat = beat
        self._edition = Edition()
        self._level = 1
        self._chance = random.Random(1)  # noqa: S311
        self._ending = threading.Event()
        works: list[Callable[[], None]] = [self._push, self._materialize, self._change, self._check]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__.strip("_"))
            for work in works
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End each once it has done what it was doing; answers are compared to the end."""
        self._ending.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def command(self, *words: str) -> dict[str, Any]:
        """Run a command of the project in a process of its own; return what it printed.

        What fails is counted, and `{}` is returned. What says that it is to be tried again is, as
        whoever runs it by hand would do: definitions may change while a view switches its table.
        """
        done = self._run(*words)
        for _ in range(_TRIES):
            if done.returncode != _TRY_AGAIN:
                break
            self.counts["commands tried again"] += 1
            done = self._run(*words)
        if done.returncode:
            self.failed(f"{words[0]}: exit code {done.returncode}", done.stderr.strip()[-600:])
            return {}
        # What goes on longer prints a line for each thing that happens.
        text = done.stdout.splitlines()[-1] if words[0] == "ingest" else done.stdout
        found: dict[str, Any] = json.loads(text)
        return found

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "featurestore.cli", *words, "--output", "json"]
        return subprocess.run(  # noqa: S603
            [*program, "--repo", str(self._repository.folder)],
            check=False,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
        )

    def failed(self, kind: str, what: str) -> None:
        """Count a failure, and keep the first words of the first ones."""
        self.errors[kind] += 1
        if self.errors.total() <= 10:  # noqa: PLR2004
            sys.stderr.write(f"soak: {kind}: {what}\n")

    def materialize(self) -> None:
        """Add rows for some users and all marked ones, and materialize all that is new."""
        self._level += 1
        users = [*self._chance.sample(range(USERS), _CHANGED_USERS), *MARKED]
        self._repository.write_levels(users, self._level)
        found = self.command("materialize-incremental")
        if found:
            self.counts["materializations"] += 1
            self.counts["rows pushed"] += sum(view["rows_pushed"] for view in found["views"])
            self.checker.materialized(MARKED, self._level, time.monotonic())

    def prime(self, users: Sequence[int]) -> None:
        """Push an event for each of these users and wait until answers have them.

        From then on answers for them are of one size: each says how far the stream was applied.
        """
        with OnlineClient(self._address, timeout=30) as client:
            receipt = client.push(SOURCE, events(_FIRST_EVENT - len(users), users))
            ((partition, position),) = receipt.positions.items()

            def applied() -> bool:
                answer = client.get_online_features(["spend:count_1m"], {"user_id": list(users)})
                found = answer.applied.get("spend", {}).get(partition, [])
                return bool(found) and all(at == position for at in found)

            wait_until(applied, seconds=_COMMAND_SECONDS, what="the first events")

    def is_scheduled_done(self) -> bool:
        """Return whether the scheduled view has been materialized."""
        views = self.command("status").get("views", [])
        return all(view["last_success"] for view in views if view["schedule"])

    def is_read_back(self) -> bool:
        """Return whether all that was pushed for the marked users is in the answers."""
        with OnlineClient(self._address, timeout=30) as client:
            answer = client.get_online_features(["spend:count_lifetime"], {"user_id": list(MARKED)})
        return self.checker.is_all(MARKED, answer.to_dict()["count_lifetime"])

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (a thread that died silently would look well)
            self.failed(f"{work.__name__.strip('_')}: {type(error).__name__}", repr(error))

    def _materialize(self) -> None:
        while not self._ending.wait(self._beat.materialize):
            self.materialize()

    def _change(self) -> None:
        step = 0
        while not self._ending.wait(self._beat.change):
            self._edition = self._edition.after(step)
            self._repository.define(self._edition)
            if self.command("apply", "--allow-destructive"):
                self.counts["changes of definitions"] += 1
            step += 1

    def _push(self) -> None:
        due = time.monotonic()
        number, marked = _FIRST_EVENT, 0
        with OnlineClient(self._address, timeout=30) as client:
            while not self._ending.wait(max(0.0, due - time.monotonic())):
                user = MARKED[marked % len(MARKED)]
                others = [self._chance.randrange(USERS) for _ in range(_EVENTS_A_PUSH - 1)]
                try:
                    receipt = client.push(SOURCE, events(number, [*others, user]))
                except FeatureStoreError as error:
                    self.failed(f"push: {type(error).__name__}", str(error))
                else:
                    (position,) = receipt.positions.values()
                    self.checker.pushed(user, position, time.monotonic())
                    self.counts["events"] += receipt.accepted
                number += _EVENTS_A_PUSH
                marked += 1
                due += _EVENTS_A_PUSH / self._beat.events

    def _check(self) -> None:
        while not self._ending.is_set():
            with OnlineClient(self._address, timeout=30) as client:
                for _ in range(_ANSWERS_A_CLIENT):
                    self._compare(client)
                    if self._ending.wait(self._beat.check):
                        break

    def _compare(self, client: OnlineClient) -> None:
        users = [*MARKED, *(self._chance.randrange(USERS) for _ in range(4))]
        bonus = self._chance.randrange(1_000)
        asked = time.monotonic()
        try:
            answer = client.get_online_features(
                list(REFERENCES), {"user_id": users}, request={"bonus": bonus}
            )
        except FeatureStoreError as error:
            self.failed(f"lookup: {type(error).__name__}", str(error))
            return
        self.checker.answered(rows_of(answer, users), bonus, asked, time.monotonic())


def rows_of(answer: OnlineResponse, users: list[int]) -> list[Row]:
    """Return an answer entity by entity."""
    values, statuses = answer.to_dict(), answer.statuses
    positions = next(iter(answer.applied.get("spend", {}).values()), None)
    return [
        Row(
            user,
            {name: column[place] for name, column in values.items()},
            {name: str(column[place]) for name, column in statuses.items()},
            None if positions is None else positions[place],
            answer.fingerprints["profile"],
        )
        for place, user in enumerate(users)
    ]
