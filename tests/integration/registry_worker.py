"""What the processes of `test_registry_processes.py` do: `registry_worker.py WORK ARGUMENT...`.

A worker says in one line what it has come to, waits for a line where the test has to do something
first, and says in a last line, as JSON, how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sqlite3
import sys

from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.errors import FeatureStoreError
from featurestore.ports.engine import SourceFile
from featurestore.testing.registry_samples import apply, full_state, view_plan, with_views

NOBODY = 65534


def say(word: str) -> None:
    """Tell the test something."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def wait() -> None:
    """Go on when the test says so."""
    sys.stdin.readline()


def end(work) -> None:
    """Do the work and tell how it ended."""
    try:
        result = {"done": work()}
    except FeatureStoreError as error:
        result = {"error": type(error).__name__, "text": str(error)}
    say(json.dumps(result))


def publish(url: str, project: str, name: str) -> None:
    """Publish from the revision that is there now, when told."""
    registry = SqlRegistry(url, timeout_seconds=30)
    state = with_views(registry.state(project), view_plan(name, name.encode().hex()))
    say("ready")
    wait()
    end(lambda: apply(registry, state, by=name, what=f"a view by {name}").revision)


def publish_first(url: str, project: str, name: str) -> None:
    """Publish, when told, into a registry that nobody has made yet."""
    registry = SqlRegistry(url, timeout_seconds=30)
    say("ready")
    wait()
    end(lambda: apply(registry, full_state(project), by=name, what=f"by {name}").revision)


def stop_inside(url: str, project: str, statement: str) -> None:
    """Publish, and stop for good inside of the transaction, after a statement."""
    from sqlalchemy import Engine, event

    def stop(_connection, _cursor, text, *_others) -> None:
        if text.strip().startswith(statement):
            say("inside")
            wait()

    event.listen(Engine, "after_cursor_execute", stop)
    registry = SqlRegistry(url, timeout_seconds=30)
    state = with_views(registry.state(project), view_plan("half", b"half".hex()))
    apply(registry, state, by="the killed one")
    say("the statement never came")


def hold(path: str, begin: str) -> None:
    """Hold the lock of a SQLite file until told."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(begin)
        say("holding")
        wait()
        connection.execute("ROLLBACK")
    end(lambda: "released")


def unprivileged(method: str, url: str, project: str, warm_up: str) -> None:
    """Use a registry as somebody whom permissions bind, also when the tests run as root."""
    apply(SqlRegistry(warm_up), full_state(project))  # whatever is imported late is imported now
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    registry = SqlRegistry(url, timeout_seconds=1)
    if method == "publish":
        end(lambda: apply(registry, full_state(project, revision=1)).revision)
    else:
        end(lambda: registry.revision(project))


def small_disk(url: str, project: str, limit: str) -> None:
    """Save what does not fit: no file may grow over a limit of bytes, as on a full disk."""
    registry = SqlRegistry(url)
    before = registry.state(project)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    files = [SourceFile(os.urandom(40).hex(), "t") for _ in range(5_000)]
    end(lambda: registry.save_snapshot(project, files))
    end(lambda: registry.state(project) == before)


def fork(url: str, project: str) -> None:
    """Use one registry object on both sides of a fork, one after the other."""
    registry = SqlRegistry(url)
    state = registry.state(project)
    child = os.fork()
    if not child:
        state = apply(registry, state, by="child")
        os._exit(0 if registry.state(project) == state else 1)
    _, status = os.waitpid(child, 0)
    end(lambda: [status, apply(registry, registry.state(project), by="parent").revision])


WORKS = {
    work.__name__: work
    for work in (publish, publish_first, stop_inside, hold, unprivileged, small_disk, fork)
}

if __name__ == "__main__":
    WORKS[sys.argv[1]](*sys.argv[2:])
