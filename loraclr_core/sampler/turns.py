"""Turns: a step evaluates some of the concepts' branches, and the others keep the results of their last turn.

A branch with the plain picture around its concept depends on the other concepts through the latent alone, and its
denoised prediction changes slowly from step to step: that of its last turn can stand for it until the next. (Towards a
prediction that is kept, an Euler step goes on in the direction that the branch gave last.)
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .separation import Maps

# The role of each list of conditioning that is asked for; None for one without branches.
Roles = Sequence[str | None]


class Held(NamedTuple):
    """The results of a branch's last turn."""

    # When it was, counted in turns.
    turn: int
    roles: Roles
    # One for each list with a role, by the list's number.
    predictions: dict[int, Tensor]
    # The branch's attention, (batch, h, w, tokens).
    maps: Tensor


class Turns:
    """The turns of one run: every branch in the first step, then those whose last turn is longest ago."""

    def __init__(self, concepts_per_step: int):
        """Begin a run. concepts_per_step: how many concepts a step evaluates; 0 for all."""
        self.concepts_per_step = concepts_per_step
        self.held: dict[int, Held] = {}  # by branch; the one whose last turn is longest ago comes first
        self.step: int | None = None
        self.turn = -1

    def due(self, branches: Sequence[int], step: int, roles: Roles) -> list[int]:
        """Return those of `branches` to evaluate now. The base branch, 0, takes no turns.

        Where a sampler evaluates a step more than once, the same branches are due each time.
        """
        if step != self.step:
            self.step, self.turn = step, self.turn + 1
        concepts = [branch for branch in branches if branch != 0]
        waiting = [branch for branch in self.held if branch in concepts and self.held[branch].roles == roles]
        if not self._are_taken(branches) or len(waiting) < len(concepts):
            return list(branches)
        again = [branch for branch in concepts if self.held[branch].turn == self.turn]
        return [b for b in branches if b == 0 or b in (again or waiting[: self.concepts_per_step])]

    def are_first(self, branches: Sequence[int]) -> bool:
        """Return whether `branches` take turns, and the step that they were due in last is the first."""
        return self._are_taken(branches) and self.turn == 0

    def hold(self, branches: Sequence[int], roles: Roles, predictions: list[list[Tensor]], maps: Maps) -> None:
        """Keep the results of the branches that were due. predictions: for each list, those of `branches`."""
        waited = [branch for branch in self.held if branch in branches]
        for branch in [*waited, *(branch for branch in branches if branch not in waited)]:
            by_list = {i: predictions[i][branches.index(branch)] for i, role in enumerate(roles) if role is not None}
            self.held.pop(branch, None)
            self.held[branch] = Held(self.turn, roles, by_list, maps[branch])

    def predictions(self, branches: Sequence[int], number: int) -> list[Tensor]:
        """Return the last prediction of each of `branches` for a list with a role, by the list's number."""
        return [self.held[branch].predictions[number] for branch in branches]

    def maps(self, branches: Sequence[int]) -> Maps:
        """Return the last attention of each of `branches`."""
        return {branch: self.held[branch].maps for branch in branches}

    def _are_taken(self, branches: Sequence[int]) -> bool:
        return 0 < self.concepts_per_step < sum(branch != 0 for branch in branches)
