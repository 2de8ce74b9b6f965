"""Every way to search one objective, side by side: what it pays, and how near it comes."""

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


def paid(solution: solver.Solution) -> int:
    """Return how many evaluations a method needed beyond the two ends, which pairs share."""
    return len({sample.alpha for sample in solution.trace} - {0.0, 1.0})
