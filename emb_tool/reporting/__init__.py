"""What is said of results: pages, charts, model cards, comparisons."""
