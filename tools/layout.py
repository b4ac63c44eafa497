"""Places for a workflow's nodes: columns of groups, from left to right, in which nothing overlaps in either renderer.

A column is as tall as its nodes. Heights are what the taller renderer needs, with a node's title and the line that says an
error. A template that opens fills three quarters of the window, and below a zoom of `READABLE` the classic canvas draws no
text: that bounds how large a workflow may be. tests/page/test_templates.py measures all this in the page.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from graph import Box, Graph

READABLE = 0.6
SMALL, LARGE = (1280, 720), (1500, 1000)  # windows, in pixels
TITLE = 30  # of a node, above its position
HEAD = 40  # of a group, for its title
EDGE = 20  # between nodes, or a group and its nodes: room for the red ring around a node with an error
GAP = 15  # between groups
COLLAPSED = TITLE


class Columns:
    """Where the next node of a graph goes: below the last one, until a new column begins."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.left = self.width = self.top = 0

    def column(self, width: int) -> None:
        """Begin a column to the right of the last."""
        self.left += self.width + 2 * EDGE + GAP if self.width else 0
        self.width, self.top = width, 0

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Put a group around the nodes that are placed within."""
        start = self.top
        self.top += HEAD
        yield
        self.graph.group(title, (self.left - EDGE, start, self.width + 2 * EDGE, self.top - start))
        self.top += GAP

    def place(self, height: int) -> Box:
        """Return the box of the next node. height: with its title."""
        box = self.left, self.top + TITLE, self.width, height - TITLE
        self.top += height + EDGE
        return box
