"""`python -m twinquant`: the command line."""

from __future__ import annotations

from twinquant.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
