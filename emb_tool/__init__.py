"""embtool: smaller, faster, longer-reading embedding models, and what each step cost."""

__version__ = "0.1.0"
