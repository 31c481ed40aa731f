"""One model of several of the same family, streamed: inputs are never wholly in memory."""

from emb_tool.cli.jobs import job_command, list_options

EXAMPLE = (
    "embtool merge sentence-transformers/all-MiniLM-L6-v2"
    " sentence-transformers/multi-qa-MiniLM-L6-cos-v1 -m slerp:t=0.3 -o merged"
)

command = job_command("merge")
LISTS = list_options("merge")
