"""`embtool encode`: texts to a file of vectors, row by row."""

from emb_tool.fields import USED

PANEL = USED
SUMMARY = "texts to vectors, npy or parquet"
HELP = "Turn texts into vectors, in their order: one row a record, streamed to .npy or .parquet."
EXAMPLE = "embtool encode small texts.jsonl -o vectors.npy"

JOB = ("emb_tool.encode.job", "EncodeJob")
RUNNER = ("emb_tool.encode.runner", "EncodeRunner")

LISTS = ()
"""Of `--calibrate A B`, B is the model."""

METHODS = ()
