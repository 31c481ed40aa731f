"""Devices, dtypes, ranks, seeds, signals: the only folder that names them."""
