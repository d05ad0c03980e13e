"""Pushes numbered events one by one and prints the number of each that was taken.

Run as a program: `python -m tests.integration.ingest_producer FOLDER FIRST LAST`. It may be killed
at any moment; what it has printed is in the stream for good.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from featurestore import FeatureStore
from featurestore.errors import StreamUnavailableError

START = datetime(2024, 5, 1, tzinfo=UTC)


def event(number: int) -> dict[str, Any]:
    """Return an event."""
    at = START + timedelta(seconds=number)
    return {"id": f"e{number}", "user": number % 5, "at": at, "amount": float(number)}


def main(folder: Path, first: int, last: int) -> None:
    """Push events until all are taken."""
    with FeatureStore(folder) as store:
        number = first
        while number < last:
            try:
                store.push("clicks", [event(number)])
            except StreamUnavailableError:
                continue
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
