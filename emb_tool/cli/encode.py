"""Turn texts into vectors, in their order: one row a record, streamed to .npy or .parquet."""

from emb_tool.cli.jobs import job_command

EXAMPLE = "embtool encode small texts.jsonl -o vectors.npy"

command = job_command("encode")
