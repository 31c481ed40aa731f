"""A model that reads longer texts, made without training or with a little of it.

For example: embtool extend-context MODEL --to 4096 -o OUT
"""

from emb_tool.cli.jobs import job_command, list_options

command = job_command("extend-context", "Extend", ["model"])
LISTS = list_options("extend-context")
