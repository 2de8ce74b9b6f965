import math

from experiment import compare
from paintlib.solver import Status


def losses(alpha):
    return math.exp(alpha**2 + 0.3 * alpha - 1), math.exp(-2 * alpha)


def test_every_method_is_compared_and_pays_for_what_it_asked():
    asked = []
    found = compare.search(lambda alpha: asked.append(alpha) or losses(alpha))
    named = {compare.QUINTIC, compare.LOG_QUINTIC, compare.BRENT, compare.GRID}
    assert named < set(found) and len(found) == 7
    assert all(solution.status is Status.CONVERGED for solution in found.values())
    price = {name: compare.paid(solution) for name, solution in found.items()}
    assert [price[f"exhaustive, step {step}"] for step in (0.1, 0.05, 0.01)] == [9, 19, 99]
    assert price[compare.QUINTIC] == price[compare.GRID] + 1
    assert price[compare.LOG_QUINTIC] < price[compare.BRENT] < price["golden section (scipy)"]
    lowest = min(sum(losses(alpha)) for alpha in asked)
    for name in (compare.QUINTIC, compare.LOG_QUINTIC):
        assert found[name].value <= lowest * (1 + 1e-6) < found[compare.GRID].value
