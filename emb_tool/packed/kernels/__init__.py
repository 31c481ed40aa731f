"""Kernels in Triton: the same functions as the plain ones beside them, in one pass on a GPU."""
