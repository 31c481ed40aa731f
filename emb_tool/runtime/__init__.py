"""Devices, dtypes, processes, seeds and signals; no other folder refers to them directly."""
