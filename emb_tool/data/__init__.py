"""Texts and evaluation sets: reading, deduplication, held-out splits and batches."""
