"""The steps of a run, from images to results: each reads the files before it and writes its own.

Every step shows its progress and writes its files whole or not at all, so that a killed run goes
on from the last finished step. One module holds what changes together: the workflow runs a step
again when its module, or any that it imports, has changed.
"""
