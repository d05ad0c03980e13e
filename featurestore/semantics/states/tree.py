"""The tree of one state: versions go into pages, a page that is full becomes a node of parts.

Only nodes on the way to what changes are looked at; what their parts come to is computed for all
states of a batch at once, by `summaries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featurestore.semantics.states.index import Needs
from featurestore.semantics.states.layout import (
    INSTANT,
    NO_TREE,
    ROOT,
    TOP,
    Header,
    Node,
    above,
    bounds_of,
    child_of,
    id_hash,
    node_name,
    part_of,
    path_of,
)
from featurestore.semantics.states.nodes import Inner, Summary, pack_inner, read_inner
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.summaries import of_pages, of_parts
from featurestore.semantics.states.versions import INNER, Version, is_many, pack_page, read_page

PAGE_ROWS = 256
# Events with large inputs, such as embeddings, fill a page sooner.
_PAGE_BYTES = 1 << 17
_LOWEST = 0

Page = list[Version]
_UNKNOWN = Summary(0, [])  # of a part until `summarize` knows better


class Tree:
    """The nodes of one state that were looked at.

    Args:
        schema: The view's.
        header: The state's; tells the depth.
        fields: All fields of the state that were read.
        page_rows: How many versions a page takes.
    """

    def __init__(
        self,
        schema: StateSchema,
        header: Header,
        fields: dict[bytes, bytes | None],
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self._schema = schema
        self._header = header
        self._depth = header.depth  # as it was read
        self._fields = fields
        self._page_rows = page_rows
        self._nodes: dict[Node, Page | Inner | None] = {}
        self.touched: set[Node] = set()

    def load(self, entries: Iterable[tuple[int, int]]) -> Needs:
        """Ask for the nodes on the way to entries, (hash, place) each."""
        depth = self._depth
        yield {node_name(n) for hashed, place in entries for n in path_of(place, hashed, depth)}

    def insert(self, versions: list[Version]) -> None:
        """Put versions in; those of the same events were taken out."""
        self._insert(ROOT, versions)

    def find(self, event_id: bytes, hashed: int, place: int) -> list[Version]:
        """Return the versions of an event in the page that has a place."""
        page = self._page(hashed, place)[0]
        return [version for version in page if version.id == event_id]

    def remove(self, event_id: bytes, hashed: int, place: int) -> None:
        """Take the versions of an event out of the page that has a place."""
        page, way = self._page(hashed, place)
        page[:] = [version for version in page if version.id != event_id]
        self.touched.update(way)

    def sweep(self, horizon: int) -> Needs:
        """Drop what lies before the horizon as a whole, asking for nodes level by level."""
        cut, past = [ROOT], list[Node]()
        while cut or past:
            yield {node_name(node) for node in (*cut, *past)}
            parts = [part for node in past for part in self._parts(node)]
            for node in past:
                self._nodes[node] = None
                self.touched.add(node)
            past = parts
            edges, cut = cut, []
            for node in edges:
                for part in self._parts(node):
                    start, end = bounds_of(part)
                    if end <= horizon:
                        past.append(part)
                    elif start < horizon and part[0] > INSTANT:
                        cut.append(part)

    def get(self, node: Node) -> Page | Inner | None:
        """Return a node that was asked for; the caller may change it."""
        if node in self._nodes:
            return self._nodes[node]
        held: Page | Inner | None = None
        if node[0] >= self._depth:  # below it there is nothing
            data = self._fields[node_name(node)]
            if data is not None:
                is_inner = data[0] == INNER
                held = read_inner(self._schema, data) if is_inner else read_page(self._schema, data)
        self._nodes[node] = held
        return held

    def close(self, node: Node, summary: Summary | None) -> None:
        """Tell the node above what a touched one comes to, None where nothing is left of it."""
        if summary is None:
            self._nodes[node] = None
        if node == ROOT:
            if summary is None:
                self._header.depth = NO_TREE
            return
        parent, part = above(node)
        held = self.get(parent)
        if not isinstance(held, Inner):  # it went away as a whole
            return
        if summary is None:
            held.parts.pop(part, None)
        else:
            held.parts[part] = summary
        self.touched.add(parent)

    def changes(self) -> dict[bytes, bytes | None]:
        """Return the fields that changed, None for one that is gone."""
        changed: dict[bytes, bytes | None] = {}
        for node in self.touched:
            held = self._nodes[node]
            if held is None:
                changed[node_name(node)] = None
            elif isinstance(held, Inner):
                changed[node_name(node)] = pack_inner(self._schema, held)
            else:
                changed[node_name(node)] = pack_page(self._schema, held)
        return changed

    def _insert(self, node: Node, versions: list[Version], *, is_new: bool = False) -> None:
        held = None if is_new else self.get(node)
        self.touched.add(node)
        if not isinstance(held, Inner):
            page = versions if held is None else [*held, *versions]
            self._header.depth = min(self._header.depth, node[0])
            if node[0] == _LOWEST or not is_many(page, self._page_rows, _PAGE_BYTES):
                self._nodes[node] = page
                return
            held, versions, is_new = Inner(), page, True
            self._nodes[node] = held
        groups: dict[int, list[Version]] = {}
        for version in versions:
            part = part_of(node, version.place, id_hash(version.id) if node[0] <= INSTANT else 0)
            groups.setdefault(part, []).append(version)
        for part, group in groups.items():
            held.parts.setdefault(part, _UNKNOWN)
            self._insert(child_of(node, part), group, is_new=is_new)

    def _page(self, hashed: int, place: int) -> tuple[Page, list[Node]]:
        """Return the page of a place, empty where there is none, and the way to it."""
        way: list[Node] = []
        for node in path_of(place, hashed, self._depth):
            way.append(node)
            held = self.get(node)
            if not isinstance(held, Inner):
                return ([], way) if held is None else (held, way)
        return [], way

    def _parts(self, node: Node) -> list[Node]:
        held = self.get(node)
        return [child_of(node, part) for part in held.parts] if isinstance(held, Inner) else []


def summarize(schema: StateSchema, trees: Sequence[Tree]) -> None:
    """Compute what touched nodes come to, level by level, for all trees at once."""
    for level in range(TOP + 1):
        pages: list[tuple[Tree, Node, Page]] = []
        inners: list[tuple[Tree, Node, Inner]] = []
        for tree in trees:
            for node in [node for node in tree.touched if node[0] == level]:
                held = tree.get(node)
                if isinstance(held, Inner) and held.parts:
                    inners.append((tree, node, held))
                elif isinstance(held, list) and held:
                    pages.append((tree, node, held))
                else:
                    tree.close(node, None)
        if level == TOP:
            return
        for (tree, node, _), summary in zip(
            pages, of_pages(schema, [page for _, _, page in pages]), strict=True
        ):
            tree.close(node, summary)
        for (tree, node, _), summary in zip(
            inners, of_parts(schema, [inner for _, _, inner in inners]), strict=True
        ):
            tree.close(node, summary)
