"""Public: `feed` to try definitions on a handful of events; conformance suites for adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.testing.trying import Fed, feed

__all__ = ["Fed", "feed"]


def __getattr__(name: str) -> Any:
    # Whoever tests an adapter should not load an engine for it.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from featurestore.testing import trying

    return getattr(trying, name)
