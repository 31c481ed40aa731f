"""Train a small student whose vectors live in the teacher's own space.

Queries can go to the student while documents stay with the teacher; no labels are needed.
"""

from emb_tool.cli.jobs import job_command, list_options

EXAMPLE = (
    "embtool distill --teacher sentence-transformers/all-MiniLM-L6-v2 --student-layers 3"
    " --texts texts.jsonl -o student"
)

command = job_command("distill")
LISTS = list_options("distill")
