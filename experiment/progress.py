"""Progress bars: short lines at a calm pace, since they end up in the log of a parallel run."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable[Any] | None, what: str, **options: Any) -> Any:
    """Return `iterable` with a progress bar, or a bar to be updated by hand where it is None."""
    return tqdm(iterable, what, mininterval=10.0, ncols=90, leave=False, **options)
