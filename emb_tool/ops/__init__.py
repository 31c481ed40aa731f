"""Tensor and layer operations that more than one method needs."""
