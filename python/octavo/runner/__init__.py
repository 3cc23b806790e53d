"""Runs a model over the step batch. The runner sees rows and columns, no requests."""
