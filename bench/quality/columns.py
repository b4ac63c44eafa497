"""What is asked: the concepts that each column gives to a method, and the prompts it answers."""

import itertools
from typing import NamedTuple

from shapes.world import BACKGROUNDS, CLASSES, CONCEPTS

from .methods import VARIANTS, Ask, Group
from .rows import COMPARED, ROWS

BATCH = 4  # pictures of one prompt


class Column(NamedTuple):
    """A number of concepts, and the pictures that are asked for with them."""

    # What the tables call it.
    title: str
    # The sets of concepts that a method is given; every concept is in one of them.
    groups: tuple[Group, ...]
    # The concepts that pictures of several concepts name.
    together: tuple[Group, ...] = ()

    def asks(self, pictures: int) -> dict[str, list[Ask]]:
        """Return the prompts of each kind of picture, sorted by group. "own" and "kept" are the same in all columns."""
        asks: dict[str, list[Ask]] = {"own": [], "together": [], "kept": []}
        backgrounds, pairs = list(BACKGROUNDS), list(itertools.permutations(CLASSES, 2))
        for number in range(pictures // BATCH):
            background = backgrounds[number % len(backgrounds)]
            concept = CONCEPTS[number % len(CONCEPTS)]
            asks["own"].append(Ask(self.choose_group((concept,), number), (concept,), (), background, number))
            if self.together:
                named = self.together[number % len(self.together)]
                asks["together"].append(Ask(self.choose_group(named), named, (), background, number))
            if number % 4 == 0:
                group = self.groups[number % len(self.groups)]
                asks["kept"].append(Ask(group, (), pairs[number % len(pairs)], background, number))
        return {kind: sorted(prompts, key=lambda ask: self.groups.index(ask.group)) for kind, prompts in asks.items()}

    def choose_group(self, named: Group, number: int = 0) -> Group:
        """Return a group that holds the named concepts, taking turns where several do."""
        groups = [group for group in self.groups if set(named) <= set(group)]
        return groups[number // len(CONCEPTS) % len(groups)]


BALL, BOX, KITE, CROSS, BALL2, BOX2, KITE2, CROSS2 = CONCEPTS
PAIRS = ((BALL, BOX), (KITE, CROSS), (BALL2, BOX2), (KITE2, CROSS2))
PAIRS += ((BALL, KITE2), (BOX, CROSS2), (BALL2, KITE), (BOX2, CROSS))
PAIRS_OF_ONE_CLASS = ((BALL, BALL2), (BOX, BOX2), (KITE, KITE2), (CROSS, CROSS2))
TRIPLES = ((BALL, BOX, KITE), (BALL2, BOX2, CROSS2), (CROSS, KITE2, BALL), (BOX, KITE, CROSS2))
QUADRUPLES = ((BALL, BOX, KITE, CROSS), (BALL2, BOX2, KITE2, CROSS2), (BALL, BOX2, KITE, CROSS2))
SIX = (CONCEPTS[:6], CONCEPTS[2:])
PAIRS_WITHIN_SIX = tuple(pair for pair in PAIRS if any(set(pair) <= set(group) for group in SIX))

# Their names are part of the cells' file names.
COLUMNS = {
    "1": Column("1 concept", tuple((concept,) for concept in CONCEPTS)),
    "2": Column("2 concepts", PAIRS, PAIRS),
    "2-same-class": Column("2 of one class", PAIRS_OF_ONE_CLASS, PAIRS_OF_ONE_CLASS),
    "3": Column("3 concepts", TRIPLES, TRIPLES),
    "4": Column("4 concepts", QUADRUPLES, QUADRUPLES),
    "6": Column("6 concepts", SIX, PAIRS_WITHIN_SIX),
    "8": Column("8 concepts", (CONCEPTS,), PAIRS),
}
MERGE_COLUMNS = tuple(column for column in COLUMNS if column != "1")
SAMPLER_COLUMNS = ("2", "2-same-class", "3", "4")  # more do not fit into one picture


def is_sampler(row: str) -> bool:
    """Return whether the method draws only pictures of several concepts."""
    return ROWS[row].kinds == ("together",)


def columns_of(row: str) -> tuple[str, ...]:
    """Return the columns that a row is measured in."""
    if row == "alone":
        return ("1",)
    if row in VARIANTS:
        return ("2",) if is_sampler(row) else ("8",)
    return SAMPLER_COLUMNS if is_sampler(row) else MERGE_COLUMNS


def count_pictures(row: str, column: str) -> int:
    """Return 64 for the headlines, 32 elsewhere, and 16 for the rows whose pictures take longest."""
    if is_sampler(row) and (row in VARIANTS or row in ("clora-updates", "freefuse-our-masks")):
        return 16
    headline = (
        row in COMPARED and not ROWS[row].steps and column in (("2", "2-same-class") if is_sampler(row) else ("1", "8"))
    )
    return 64 if headline else 32
