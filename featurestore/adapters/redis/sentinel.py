"""The primary that sentinels name: found by asking them, and found anew when it changes.

Sentinels are asked before the first call, whenever a call met trouble, and once a second while none
does, so that a primary which was cut off is not read for long. One that does not answer is passed
over and asked last from then on. While none answers, the primary that was known goes on being used:
a connection to it opens only if it says that it is one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from redis.exceptions import AskError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from featurestore.adapters.redis.connection import (
    Command,
    Deadline,
    Server,
    connection_options,
    exchange,
)
from featurestore.adapters.redis.failures import (
    DRIVER_ERRORS,
    SentinelsRefusedError,
    is_refused,
)
from featurestore.adapters.redis.location import Location
from featurestore.clock import Clock
from featurestore.errors import SettingsError

_LOOK_SECONDS = 1.0
# What asking may take of the time that a call has left, and at most. A call that knows a primary
# gives up sooner, to have time left for trying it.
_FIRST_SHARE, _SHARE, _LONGEST_LOOK = 0.8, 0.3, 1.0
_Address = tuple[str, int]


class SentinelPrimary:
    """Whichever server is the primary now. For use by any number of threads.

    Args:
        location: Where the sentinels are, and what they call the server.
        deadline: What connections keep to.
        clock: What tells the time that passes.
    """

    one_server = True

    def __init__(self, location: Location, deadline: Deadline, clock: Clock) -> None:
        self._location = location
        self._deadline = deadline
        self._clock = clock
        self._options = connection_options(location, deadline)
        self._asking = Deadline(clock, _LONGEST_LOOK)
        options = connection_options(location, self._asking, sentinel=True)
        self._sentinels = [Server(host, port, options) for host, port in location.sentinels]
        self._lock = threading.Lock()
        self._known: tuple[_Address, Server] | None = None
        self._looked = 0.0
        self._suspect = False
        self._pid = os.getpid()

    def place(self, keys: Sequence[bytes]) -> dict[Server, list[int]]:
        """Return the primary with all positions."""
        return {self._current(): list(range(len(keys)))}

    def primaries(self) -> list[Server]:
        """Return the primary."""
        return [self._current()]

    def redirect(self, error: AskError) -> Server:
        """Refuse: the server is part of a cluster, which has no sentinels."""
        raise error

    def failed(self, server: Server) -> None:
        """Have the sentinels asked before the next call."""
        if self._known is not None and self._known[1] is server:
            self._suspect = True

    def forget(self) -> None:
        """Close the idle connections, and have the sentinels asked before the next call."""
        self._suspect = True
        if self._known is not None:
            self._known[1].close_idle()

    def close(self) -> None:
        """Close the idle connections; those in use close when they are given back."""
        with self._lock:
            known, self._known = self._known, None
        if known is not None:
            known[1].close()
        for sentinel in self._sentinels:
            sentinel.close_idle()

    def _current(self) -> Server:
        if self._pid != os.getpid():
            # A thread that is not here may have held it.
            self._lock, self._pid = threading.Lock(), os.getpid()
        known = self._known
        if known is None:
            return self._look_first()
        due = self._clock.monotonic() - self._looked >= _LOOK_SECONDS
        if not (self._suspect or due) or not self._lock.acquire(blocking=False):
            return known[1]
        try:
            return self._look_again(known)
        finally:
            self._lock.release()

    def _look_first(self) -> Server:
        if not self._lock.acquire(timeout=self._deadline.left()):
            raise TimeoutError("the sentinels have not named the primary in time")
        try:
            if self._known is None:
                return self._use(self._ask(self._deadline.left() * _FIRST_SHARE))
            return self._known[1]
        finally:
            self._lock.release()

    def _look_again(self, known: tuple[_Address, Server]) -> Server:
        suspected, self._suspect = self._suspect, False
        try:
            address = self._ask(self._deadline.left() * _SHARE)
        except (*DRIVER_ERRORS, SettingsError):
            # Nobody knows better. Whether it still is the primary, it says itself.
            self._looked = self._clock.monotonic()
            self._suspect = suspected
            return known[1]
        if address == known[0]:
            self._looked = self._clock.monotonic()
            return known[1]
        known[1].close()
        return self._use(address)

    def _use(self, address: _Address) -> Server:
        server = Server(*address, self._options)
        self._known = address, server
        self._looked = self._clock.monotonic()
        return server

    def _ask(self, seconds: float) -> _Address:
        """Return where the primary is, by the first sentinel that knows.

        Raises:
            redis.exceptions.ConnectionError: None answers.
            SentinelsRefusedError: One refused us, and none knew.
            SettingsError: All that answered do not know the service.
        """
        end = self._clock.monotonic() + min(seconds, _LONGEST_LOOK * len(self._sentinels))
        troubles: list[str] = []
        refused, unknown = False, 0
        for place, sentinel in enumerate(list(self._sentinels)):
            left = end - self._clock.monotonic()
            self._asking.start(max(0.0, left / (len(self._sentinels) - place)))
            try:
                address = self._named_by(sentinel)
            except DRIVER_ERRORS as error:
                troubles.append(f"{sentinel.name}: {' '.join(str(error).split())}")
                refused = refused or is_refused(error)
                continue
            if address is not None:
                if place:
                    self._prefer(sentinel)
                return address
            unknown += 1
        raise self._nobody(troubles, refused=refused, unknown=unknown)

    def _named_by(self, sentinel: Server) -> _Address | None:
        command: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._location.service)
        ((reply,),) = exchange([(sentinel, [command])], lambda _: None)
        if isinstance(reply, ResponseError):
            raise reply
        return None if reply is None else (reply[0].decode(), int(reply[1]))

    def _prefer(self, sentinel: Server) -> None:
        """Ask this one first from now on."""
        place = self._sentinels.index(sentinel)
        self._sentinels = self._sentinels[place:] + self._sentinels[:place]

    def _nobody(self, troubles: list[str], *, refused: bool, unknown: int) -> Exception:
        location = self._location
        told = location.scrub("; ".join(troubles))
        if refused:
            return SentinelsRefusedError(told)
        if unknown == len(self._sentinels):
            return SettingsError(
                f"The sentinels of the online store know no '{location.service}'.",
                where=location.label,
                hint="The service in [online] url is what 'sentinel monitor' in their files names.",
            )
        if unknown:
            told += f"; {unknown} do not know '{location.service}'"
        return RedisConnectionError(f"no sentinel names the primary: {told}")
