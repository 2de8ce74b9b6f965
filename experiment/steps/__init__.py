"""The steps of a run: each shows its progress and writes its files whole or not at all.

The workflow runs a step again when its module, or any that it imports, has changed.
"""
