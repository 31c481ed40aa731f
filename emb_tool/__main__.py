"""`python -m emb_tool`, as `torchrun -m` needs it."""

import sys

from emb_tool.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
