"""Entry point of `python -m emb_tool` and `torchrun -m emb_tool`."""

import sys

from emb_tool.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
