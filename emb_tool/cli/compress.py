"""Make a model smaller: a chain of methods, one read and one write, measured on the files written.

For example: embtool compress MODEL -m rotate -m truncate:dim=128 -m int:bits=4 --texts T -o OUT
"""

from emb_tool.cli.jobs import job_command, list_options

command = job_command("compress", "Compression", ["model"])
LISTS = list_options("compress")
