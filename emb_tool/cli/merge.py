"""One model of several of the same family, streamed: inputs are never wholly in memory.

For example: embtool merge A B C -m slerp:t=0.3 -o OUT
"""

from emb_tool.cli.jobs import job_command, list_options

command = job_command("merge", "Merge", ["models"])
LISTS = list_options("merge") - {"--models"}
