"""The 13 real data sets and public weights: facts, files on disk, downloads, checkpoints."""
