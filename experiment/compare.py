"""Every way to search one objective, side by side: what it pays, and how near it comes."""

from collections.abc import Sequence
from typing import Any

from paintlib import solver

QUINTIC = "quintic"  # the paper's
LOG_QUINTIC = "log-quintic"
BRENT = "Brent (scipy, bounded)"
GRID = "exhaustive, step 0.05"  # the exhaustive search of the paper


def search(objective: solver.Objective) -> dict[str, solver.Solution]:
    """Search [0, 1] by both quintics, two peers and three grids, each under its name on pages."""
    grids = {step: solver.grid(objective, step=step) for step in (0.1, 0.05, 0.01)}
    samples = grids[0.05].trace
    return {
        QUINTIC: solver.quintic(objective, known=samples),
        LOG_QUINTIC: solver.log_quintic(objective, known=[samples[0], samples[-1]]),
        BRENT: solver.brent(objective),
        "golden section (scipy)": solver.golden(objective),
        **{f"exhaustive, step {step:g}": solution for step, solution in grids.items()},
    }


def answers(objective: solver.Objective, samples: Sequence[solver.Evaluation] = (),
            **options: Any) -> dict[str, solver.Solution]:  # fmt: skip
    """Return the answer of each solver of the results, by `samples` if the grid's are known."""
    grid = solver.grid(objective, step=1.0 if samples else 0.05, known=samples)
    ends = [grid.trace[0], grid.trace[-1]]
    return {
        "grid": grid,
        "quintic": solver.quintic(objective, known=grid.trace),
        "log_quintic": solver.log_quintic(objective, known=ends, **options),
    }


def paid(solution: solver.Solution) -> int:
    """Return how many evaluations a method needed beyond the two ends, which pairs share."""
    return len({sample.alpha for sample in solution.trace} - {0.0, 1.0})
