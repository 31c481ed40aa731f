"""Shared code for training: the loop, batches, state, teachers and the store of their vectors."""
