"""Turn texts into vectors, in their order: one row a record, streamed to .npy or .parquet."""

from emb_tool.cli.jobs import job_command

command = job_command("encode", "Encoding", positional=("model", "texts"))
