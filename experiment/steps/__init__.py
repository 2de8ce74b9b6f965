"""The steps of a run: each shows its progress and writes its files whole or not at all."""
