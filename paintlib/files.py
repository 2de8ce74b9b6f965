"""Files that are whole at any time."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a new file beside `path`, and move it there when the block ends without an error.

    So `path` is always whole. Its folder is made, and an error leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{secrets.token_hex(4)}-{path.name}")  # some writers read the suffix
    part.touch()
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # some writers keep what they write to themselves
        part.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say where it is
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)
