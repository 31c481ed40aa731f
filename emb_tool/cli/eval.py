"""Measure models side by side.

Tasks: sts:FILE, retrieval:DIR, agreement:TEXTS (with --reference), speed, passkey, needle,
long-retrieval:DIR, perplexity:TEXTS. Their settings: embtool methods eval TASK.
"""

from emb_tool.cli.jobs import job_command

EXAMPLE = (
    "embtool eval small --reference sentence-transformers/all-MiniLM-L6-v2 --task sts:pairs.tsv"
)

command = job_command("eval")
LISTS = {"--precision"}
