"""The files of an output that are ours: all of them lie in its folder `embtool/`.

On top of an output lies what a stock sentence-transformers model has, so that its folder can be
uploaded to the hub as it is. An input's `embtool/` is read where its ancestors are looked up and
where its int8 ranges are needed; it is never copied.
"""

from __future__ import annotations

from pathlib import Path

OWN_FOLDER = "embtool"

PROVENANCE = f"{OWN_FOLDER}/provenance.json"
RECIPE = f"{OWN_FOLDER}/recipe.yaml"
REPORT = f"{OWN_FOLDER}/report.json"
PAGE = f"{OWN_FOLDER}/report.html"
METRICS = f"{OWN_FOLDER}/metrics.jsonl"
TENSORBOARD = f"{OWN_FOLDER}/tensorboard"
RANGES = f"{OWN_FOLDER}/embedding_ranges.json"


def own_file(output: Path, name: str) -> Path:
    """The path to write one of our files to; its folder is made.

    Args:
        output: The output folder, or the `.partial` of it.
        name: `REPORT`, `RECIPE`, ...
    """
    path = output / name
    path.parent.mkdir(exist_ok=True)
    return path


def recipe_file(path: str | Path) -> Path:
    """The recipe that a user names: the file itself, or that of an output folder."""
    path = Path(path).expanduser()
    return path / RECIPE if path.is_dir() else path
