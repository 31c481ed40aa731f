"""Measure models side by side.

Tasks: sts:FILE, retrieval:DIR, agreement:TEXTS (with --reference), speed, passkey, needle,
long-retrieval:DIR, perplexity:TEXTS. Their settings: embtool methods eval TASK.
"""

from emb_tool.cli.jobs import job_command

command = job_command("eval", "Evaluation", positional=("models",))
LISTS = {"--precision"}
