"""Texts and evaluation sets: read, deduplicated, held out and put into batches."""
