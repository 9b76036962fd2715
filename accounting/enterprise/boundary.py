"""Which meters of a plant are summed, and with which sign. Pure.

What a plant emits by a carrier is what it drew from outside less what it gave away. Meters overlap,
so of those that measure the same flow only the highest is taken: a meter covers another one if it
is its `parent`, or hangs at a node above it (a meter at no node measures the whole plant).

A carrier can be metered in two ways, and solar power of the plant's own counts once in both:

- what comes in is metered (`import`): own use never passed that meter, so generation deducts
  nothing, and export is subtracted;
- all use is metered (`load`): evidenced generation is subtracted. Of it, own use lowers what is
  drawn and the rest is export, which is subtracted at the same factor: together all of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from accounting.enterprise import plants, trees
from accounting.enterprise.meters import Flow, Meter
from accounting.enterprise.plants import Node

# Measured at plants, but neither energy nor carbon of theirs.
OUTSIDE = frozenset({"water"})

Signs = Mapping[str, int]


def highest(measured: Sequence[Meter], tree: Sequence[Node]) -> list[Meter]:
    """Of meters of one carrier and flow those that no other one of them covers.

    One that nobody has ever heard covers no other, unless nobody has heard any.
    """
    cover = _Cover(measured, tree)
    heard = [one for one in measured if one.first_day] or measured
    return [one for one in measured if not cover.covers(heard, one, one.flow)]


class Boundary:
    """The meters of a plant, or of one of its nodes and all below it.

    Nobody can tell a silent meter from one that was not there yet, except by when it was first
    heard. A meter nobody has ever heard is missing, and covers no other.
    """

    def __init__(self, meters: Sequence[Meter], tree: Sequence[Node], within: str | None) -> None:
        self._cover = _Cover(meters, tree)
        self.meters = {
            one.meter: one
            for one in meters
            if one.carrier not in OUTSIDE and within in (None, *self._cover.line(one.node))
        }
        self._known: dict[frozenset[str], Signs] = {}

    def signs(self, on: date) -> Signs:
        """+1 or -1 for each meter that is summed on a day."""
        heard = frozenset(
            name for name, one in self.meters.items() if one.first_day and one.first_day <= on
        )
        if heard not in self._known:
            self._known[heard] = self._signs(heard)
        return self._known[heard]

    def _signs(self, heard: frozenset[str]) -> Signs:
        """Before anything was heard all meters are taken for silent."""
        there = [
            one
            for name, one in self.meters.items()
            if not heard or name in heard or one.first_day is None
        ]
        by_carrier: dict[str, list[Meter]] = defaultdict(list)
        for one in there:
            by_carrier[one.carrier].append(one)
        signs: dict[str, int] = {}
        for group in by_carrier.values():
            signs |= self._of_carrier(group, heard or self.meters.keys())
        return signs

    def _of_carrier(self, group: Sequence[Meter], heard: Iterable[str]) -> dict[str, int]:
        covering = [one for one in group if one.meter in heard]
        by_flow = {flow: [one for one in group if one.flow is flow] for flow in Flow}
        roots = {
            flow: [one for one in those if not self._cover.covers(covering, one, flow)]
            for flow, those in by_flow.items()
        }
        behind = {
            one.meter
            for one in group
            if self._cover.covers(covering, one, Flow.IMPORT, beside=True)
        }
        loads = [one for one in roots[Flow.LOAD] if one.meter not in behind]
        made = [one for one in roots[Flow.GENERATION] if loads and one.meter not in behind]
        # What is made covers what of it is given away.
        given = [one for one in roots[Flow.EXPORT] if not made or one.meter in behind]
        plus, minus = [*roots[Flow.IMPORT], *loads], [*made, *given]
        return {one.meter: 1 for one in plus} | {one.meter: -1 for one in minus}


class _Cover:
    """Which meters measure what others measure too."""

    def __init__(self, meters: Iterable[Meter], tree: Iterable[Node]) -> None:
        self._meters = {one.meter: one.parent for one in meters}
        self._nodes = plants.parents(tree)

    def covers(
        self, others: Iterable[Meter], one: Meter, flow: Flow, *, beside: bool = False
    ) -> bool:
        """Whether one of the others with this flow measures it too; `beside`: at its own node."""
        above = self.line(one.node)[0 if beside else 1 :]
        measured = trees.above(one.meter, self._meters)
        return any(
            other.flow is flow
            and other.meter != one.meter
            and (other.meter in measured or other.node in above)
            for other in others
        )

    def line(self, node: str | None) -> list[str | None]:
        """A node and those above it, up to the plant itself (None)."""
        return [None] if node is None else [node, *trees.above(node, self._nodes), None]
