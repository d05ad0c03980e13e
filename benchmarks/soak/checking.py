"""Whether answers are what they must be: whole, of one generation, and never of an older state.

Pure: told what was acknowledged and what was answered, it says what is wrong. For many threads.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.soak.repository import AMOUNT

# A server looks for new definitions once a second, and knows them soon after.
SWITCH_SECONDS = 5.0
# The longest that a pushed event may take to be read, beside all else that two cores do.
LAG_SECONDS = 20.0
_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One entity of an answer, with what its views said of themselves.

    Attributes:
        user: The entity.
        values: The features by name.
        statuses: Their statuses by name.
        applied: How far the stream had been applied to it; None where nothing was said.
        profile: The fingerprint of the plain view.
    """

    user: int
    values: Mapping[str, int | None]
    statuses: Mapping[str, str]
    applied: int | None
    profile: str


@dataclass
class _Marked:
    """What is known of one marked user.

    Attributes:
        positions: Where its events are in the stream, ascending; one a push.
        times: When each push was acknowledged.
        seen: The highest position that an answer had.
        later: Answers that went further than what was acknowledged: {position: count}.
        levels: (when acknowledged, level), ascending.
        level: The highest level that an answer had, its fingerprint, and when.
    """

    positions: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    seen: int = -1
    later: dict[int, int] = field(default_factory=dict)
    levels: list[tuple[float, int]] = field(default_factory=list)
    level: tuple[int, str, float] = (0, "", 0.0)


class Checker:
    """Compares answers with what was acknowledged before they were asked for.

    Args:
        marked: Users whose events and levels are all told here.

    Attributes:
        answers: How many answers were compared.
        wrong: How many things were wrong.
        said: The first of them.
        lag: The longest that an acknowledged event was not in an answer yet.
        generations: How many fingerprints of the plain view were seen.
    """

    def __init__(self, marked: Sequence[int]) -> None:
        self._lock = threading.Lock()
        self._marked = {user: _Marked() for user in marked}
        self._editions: dict[str, int | None] = {}
        self.answers = 0
        self.wrong = 0
        self.said: list[str] = []
        self.lag = 0.0

    @property
    def generations(self) -> int:
        """How many fingerprints of the plain view were seen."""
        return len(self._editions)

    def pushed(self, user: int, position: int, at: float) -> None:
        """Hear that a push with one event of a marked user was acknowledged."""
        with self._lock:
            known = self._marked[user]
            known.positions.append(position)
            known.times.append(at)
            count = known.later.pop(position, None)
            if count is not None:
                self._require(
                    count == len(known.positions),
                    f"user {user}: {count} events up to {position}, not {len(known.positions)}",
                )

    def materialized(self, users: Sequence[int], level: int, at: float) -> None:
        """Hear that these users' level was materialized."""
        with self._lock:
            for user in users:
                self._marked[user].levels.append((at, level))

    def answered(self, rows: Sequence[Row], bonus: int, asked: float, told: float) -> None:
        """Compare an answer.

        Args:
            rows: Its entities.
            bonus: What was asked with.
            asked: When it was asked for.
            told: When it came.
        """
        with self._lock:
            self.answers += 1
            editions = {row.values["edition"] for row in rows}
            prints = {row.profile for row in rows}
            self._require(len(editions) == 1, f"editions {editions} in one answer")
            self._require(len(prints) == 1, f"fingerprints {prints} in one answer")
            for row in rows:
                held = self._editions.setdefault(row.profile, row.values["edition"])
                self._require(
                    held == row.values["edition"],
                    f"fingerprint {row.profile} with edition {held} and {row.values['edition']}",
                )
                self._check_row(row, bonus)
                if row.user in self._marked:
                    self._check_marked(row, self._marked[row.user], asked, told)

    def _check_row(self, row: Row, bonus: int) -> None:
        values = row.values
        absent = {name for name, status in row.statuses.items() if status != "PRESENT"}
        # A marked user may have no event yet, and then no sum.
        if absent - ({"amount_sum_lifetime"} if not values["count_lifetime"] else set()):
            self._require(False, f"user {row.user}: {sorted(absent)} not present")  # noqa: FBT003
            return
        level, edition, scaled = values["level"], values["edition"], values["scaled"]
        count, total = values["count_lifetime"] or 0, values["amount_sum_lifetime"] or 0
        self._require(
            scaled == (level or 0) * (edition or 0),
            f"user {row.user}: scaled {scaled} of level {level} and edition {edition}",
        )
        self._require(total == AMOUNT * count, f"user {row.user}: {count} events come to {total}")
        self._require(
            values["total"] == (scaled or 0) + count + bonus,
            f"user {row.user}: total {values['total']} of {scaled}, {count} and {bonus}",
        )

    def _check_marked(self, row: Row, known: _Marked, asked: float, told: float) -> None:
        applied = -1 if row.applied is None else row.applied
        count = row.values["count_lifetime"] or 0
        self._require(
            applied >= known.seen, f"user {row.user}: {applied} applied after {known.seen}"
        )
        known.seen = max(known.seen, applied)
        # No event of it lies between two of its pushes.
        place = bisect.bisect_right(known.positions, applied)
        if known.positions and applied > known.positions[-1]:
            known.later[applied] = count
        else:
            self._require(
                count == place,
                f"user {row.user}: {count} events up to {applied}, not {place}",
            )
        if place < len(known.times):
            lag = asked - known.times[place]
            self.lag = max(self.lag, lag)
            self._require(
                lag <= LAG_SECONDS, f"user {row.user}: pushed {lag:.1f} s ago and not there"
            )
        self._check_level(row, known, asked, told)

    def _check_level(self, row: Row, known: _Marked, asked: float, told: float) -> None:
        level = row.values["level"] or 0
        due = max((n for at, n in known.levels if at + SWITCH_SECONDS <= asked), default=0)
        self._require(level >= due, f"user {row.user}: level {level} after {due} was materialized")
        highest, former, at = known.level
        # While servers switch to another generation, one of them may still answer from the former.
        switching = former != row.profile and asked - at <= SWITCH_SECONDS
        self._require(
            level >= highest or switching, f"user {row.user}: level {level} after {highest}"
        )
        if level >= highest:
            known.level = (level, row.profile, told)

    def is_all(self, users: Sequence[int], counts: Sequence[int]) -> bool:
        """Return whether these counts have all events that were acknowledged."""
        with self._lock:
            wanted = [len(self._marked[user].positions) for user in users]
        return all(count >= want for count, want in zip(counts, wanted, strict=True))

    def finish(self) -> None:
        """Say what is left: answers from events that nobody has acknowledged."""
        with self._lock:
            for user, known in self._marked.items():
                for position, count in known.later.items():
                    self._require(
                        count == bisect.bisect_right(known.positions, position),
                        f"user {user}: {count} events up to {position}, which nobody pushed",
                    )

    def _require(self, holds: bool, what: str) -> None:  # noqa: FBT001
        if holds:
            return
        self.wrong += 1
        if len(self.said) < _SHOWN:
            self.said.append(what)
