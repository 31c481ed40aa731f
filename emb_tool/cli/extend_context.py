"""A model that reads longer texts, made without training or with a little of it."""

from emb_tool.cli.jobs import job_command, list_options

EXAMPLE = "embtool extend-context sentence-transformers/all-MiniLM-L6-v2 --to 2048 -o long"

command = job_command("extend-context")
LISTS = list_options("extend-context")
