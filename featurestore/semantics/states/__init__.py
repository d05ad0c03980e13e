"""The online state of an entity of an aggregated view: how it lies, changes and is read (W1-W6).

A state is a function of the set of event versions that it has seen: deliveries may come twice, late
and in any order. Recent versions lie in one field. What is more than that goes to a tree over time:
a node is either a page of versions or the merged states of its parts, so that a window is some
nodes, and the pages at its edges. Nothing here knows a store; fields come and go as bytes.
"""
