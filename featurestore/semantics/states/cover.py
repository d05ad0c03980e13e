"""How a window is made of a state: nodes that lie in it wholly, and pages that it cuts (W2, W3).

The way from the top down goes into a node only where an edge of the window cuts it, so a window
takes at most some ranges of parts on each level.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurestore.semantics.states.layout import (
    INSTANT,
    ROOT,
    Node,
    child_of,
    edge_path,
    node_name,
    span_of,
)
from featurestore.semantics.states.nodes import Inner, read_inner
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import INNER

Edges = tuple[int | None, int]
"""The first instant of a window, None for no beginning, and the one behind its last."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Neighbouring parts of a node, all of them in the window.

    Attributes:
        node: The node.
        first: The place of the first one among the parts that the node has.
        last: The place behind the last one.
    """

    node: Node
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A page that a window cuts, or that covers all."""

    node: Node


class Nodes:
    """The nodes of one state that were read.

    Args:
        schema: The view's.
        fields: The state's fields; a node that is not among them is not there.
    """

    def __init__(self, schema: StateSchema, fields: Mapping[bytes, bytes | None]) -> None:
        self._schema = schema
        self._fields = fields
        self._inner: dict[Node, tuple[list[int], Inner]] = {}

    def page(self, node: Node) -> bytes:
        """Return a page's bytes."""
        return self._fields[node_name(node)] or b""

    def parts(self, node: Node) -> tuple[list[int], Inner]:
        """Return which parts an inner node has, in order, and the node."""
        found = self._inner.get(node)
        if found is None:
            inner = read_inner(self._schema, self._fields[node_name(node)] or b"")
            found = self._inner[node] = (list(inner.parts), inner)
        return found

    def cover(self, edges: Edges) -> Iterator[Parts | Cut]:
        """Return what a window is made of, apart from recent versions."""
        low, high = edges
        if low is not None and low >= high:
            return
        open_nodes = [ROOT]
        while open_nodes:
            node = open_nodes.pop()
            data = self._fields.get(node_name(node))
            if data is None:
                continue
            if data[0] != INNER:
                yield Cut(node)
                continue
            parts, inner = self.parts(node)
            span = span_of(node[0] - 1)
            first = 0 if low is None else bisect_left(parts, -(-low // span))
            last = bisect_left(parts, high // span)
            if first < last:
                yield Parts(node, first, last)
            # At most two parts are cut, and in a narrow window they are one.
            cut = {} if low is None or not low % span else {low // span: None}
            if high % span:
                cut[high // span] = None
            open_nodes += [child_of(node, part) for part in cut if part in inner.parts]


def field_names(edges: Sequence[Edges], depth: int) -> list[bytes]:
    """Return the fields of all nodes that windows may need of a tree that goes down to a level."""
    nodes: dict[Node, None] = {}
    for low, high in edges:
        for bound in (low, high):
            if bound is not None:
                nodes |= dict.fromkeys(edge_path(bound, max(depth, INSTANT)))
    return [node_name(node) for node in nodes]
