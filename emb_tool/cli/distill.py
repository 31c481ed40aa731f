"""Train a small student whose vectors live in the teacher's own space.

Queries can go to the student while documents stay with the teacher; no labels are needed.
"""

from emb_tool.cli.jobs import job_command, list_options

command = job_command("distill", "Distillation")
LISTS = list_options("distill")
