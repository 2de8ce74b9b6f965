"""The experiment of the paper: run by the Snakefile and the notebooks, not part of the library."""
