"""Make a model smaller.

A chain of methods, one read and one write, measured on the files as written.
"""

from emb_tool.cli.jobs import job_command, list_options

EXAMPLE = (
    "embtool compress sentence-transformers/all-MiniLM-L6-v2 -m truncate:dim=256 -m int:bits=8"
    " --texts texts.jsonl -o small"
)

command = job_command("compress")
LISTS = list_options("compress")
