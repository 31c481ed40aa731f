"""Models that run: tokenization, loading, encoding."""
