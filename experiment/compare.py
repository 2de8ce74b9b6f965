"""Every way to search one objective, side by side: what it pays, and how near it comes."""

from __future__ import annotations

from collections.abc import Mapping

from paintlib import solver
from paintlib.solver import Solution

QUINTIC = "quintic"  # the paper's
LOG_QUINTIC = "log-quintic"
BRENT = "Brent (scipy, bounded)"
GRID = "exhaustive, step 0.05"  # the exhaustive search of the paper


def search(objective: solver.Objective) -> Mapping[str, Solution]:
    """Search an objective on [0, 1] by both quintics, two peers and three grids.

    Args:
        objective: as for `solver.quintic`; its evaluations should be remembered, since every
            method asks for its own.

    Returns:
        The name of each method on pages, to its solution.
    """
    grids = {step: solver.grid(objective, step=step) for step in (0.1, 0.05, 0.01)}
    ends = [sample for sample in grids[0.05].trace if sample.alpha in (0.0, 1.0)]
    return {
        QUINTIC: solver.quintic(objective, known=grids[0.05].trace),
        LOG_QUINTIC: solver.log_quintic(objective, known=ends),
        BRENT: solver.brent(objective),
        "golden section (scipy)": solver.golden(objective),
        **{f"exhaustive, step {step:g}": solution for step, solution in grids.items()},
    }


def paid(solution: Solution) -> int:
    """Return how many evaluations a method needed beyond the two ends, which pairs share."""
    return len({sample.alpha for sample in solution.trace} - {0.0, 1.0})
