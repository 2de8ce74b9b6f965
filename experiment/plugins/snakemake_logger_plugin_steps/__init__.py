"""Snakemake's rich progress, with the number of steps and the time left: `--logger steps`."""

from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from snakemake_logger_plugin_rich import LogHandler as RichHandler


class LogHandler(RichHandler):  # type: ignore[misc]
    """The handler of snakemake-logger-plugin-rich with two columns more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.progress.columns += (MofNCompleteColumn(), TimeRemainingColumn(compact=True))
