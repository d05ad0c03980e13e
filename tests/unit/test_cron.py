"""Cron expressions: what they accept, and which minutes they mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from apscheduler.triggers.cron import CronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.model.cron import check_cron, parse_cron
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, to_datetime, to_instant

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def at(text):
    return to_instant(datetime.fromisoformat(text).replace(tzinfo=UTC))


@pytest.mark.parametrize(
    ("cron", "after", "due"),
    [
        ("* * * * *", "2024-01-01T00:00:00", "2024-01-01T00:01:00"),
        ("* * * * *", "2024-01-01T00:00:59.999999", "2024-01-01T00:01:00"),
        ("*/15 * * * *", "2024-01-01T00:45:00", "2024-01-01T01:00:00"),
        ("5/20 3 * * *", "2024-01-01T03:05:00", "2024-01-01T03:25:00"),
        ("0 0 29 2 *", "2024-03-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 29 feb *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("59 23 31 12 *", "2024-12-31T23:59:00", "2025-12-31T23:59:00"),
        # Sunday is 0 and 7; 2024-01-07 is one.
        ("0 12 * * 0", "2024-01-01T00:00:00", "2024-01-07T12:00:00"),
        ("0 12 * * 7", "2024-01-01T00:00:00", "2024-01-07T12:00:00"),
        ("0 12 * * 1", "2024-01-02T00:00:00", "2024-01-08T12:00:00"),
        ("0 12 * * fri-sun", "2024-01-06T12:00:00", "2024-01-07T12:00:00"),
        ("0 12 * * FRI", "2024-01-01T00:00:00", "2024-01-05T12:00:00"),
        # Both day fields restricted: either counts. One begins with *: both must hold.
        ("0 0 10 * mon", "2024-01-08T00:00:00", "2024-01-10T00:00:00"),
        ("0 0 10 * mon", "2024-01-10T00:00:00", "2024-01-15T00:00:00"),
        ("0 0 */10 * mon", "2024-01-01T00:00:00", "2024-03-11T00:00:00"),
    ],
)
def test_the_next_due_instant(cron, after, due):
    assert to_datetime(parse_cron(cron).next_after(at(after))) == to_datetime(at(due))


def test_the_last_due_instant_may_be_now():
    cron = parse_cron("30 6 * * *")
    assert cron.last_at(at("2024-01-02T06:30:00")) == at("2024-01-02T06:30:00")
    assert cron.last_at(at("2024-01-02T06:29:59.999999")) == at("2024-01-01T06:30:00")


def test_the_calendar_has_ends():
    cron = parse_cron("0 0 1 1 *")
    assert cron.next_after(MAX_INSTANT) is None
    assert cron.last_at(MIN_INSTANT) == MIN_INSTANT
    assert parse_cron("0 1 1 1 *").last_at(MIN_INSTANT) is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("", "five fields"),
        ("60 * * * *", "'60' is no minute"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day of the month"),
        ("* * * 13 *", "'13' is no month"),
        ("* * * * 8", "'8' is no day of the week"),
        ("* * * * sun-tues", "no day of the week"),
        ("*/0 * * * *", "no minute"),
        ("5-1 * * * *", "no minute"),
        ("a * * * *", "no minute"),
        ("1, * * * *", "no minute"),
        ("-1 * * * *", "no minute"),
        ("0 0 30 2 *", "no year has"),
        ("0 0 31 4,6,9,11 *", "no year has"),
    ],
)
def test_what_is_no_schedule_is_refused(text, part):
    with pytest.raises(ValueError, match=part):
        check_cron(text)


@st.composite
def item(draw, low, high):
    first, last = sorted(draw(st.tuples(st.integers(low, high), st.integers(low, high))))
    # The library refuses a step that leaves nothing but the first.
    everywhere = draw(st.integers(1, high - low))
    forms = ["*", f"{first}", f"{first}-{last}", f"*/{everywhere}"]
    if first < last:
        forms.append(f"{first}-{last}/{draw(st.integers(1, last - first))}")
    return draw(st.sampled_from(forms))


def field(low, high):
    return st.lists(item(low, high), min_size=1, max_size=3).map(",".join)


@st.composite
def expression(draw):
    """Return a cron expression that restricts one of the two day fields at most."""
    weekdays = st.lists(st.sampled_from(WEEKDAYS), min_size=1, max_size=3).map(",".join)
    days = draw(field(1, 28).map(lambda day: f"{day} {{}} *") | weekdays.map("* {{}} {}".format))
    return f"{draw(field(0, 59))} {draw(field(0, 23))} {days.format(draw(field(1, 12)))}"


@settings(max_examples=100, deadline=None)
@given(expression(), st.integers(at("1990-01-01T00:00:00"), at("2100-01-01T00:00:00")))
def test_a_library_finds_the_same_minutes(text, instant):
    cron, trigger = parse_cron(text), CronTrigger.from_crontab(text, timezone=UTC)
    due = cron.next_after(instant)
    assert to_datetime(due) == trigger.get_next_fire_time(None, to_datetime(instant + 1))
    assert cron.last_at(due) == due
    assert cron.next_after(due - 1) == due
    assert cron.last_at(due - 1) == cron.last_at(instant)
