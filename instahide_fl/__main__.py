"""`python -m instahide_fl` is the command `instahide-fl`."""

from __future__ import annotations

from instahide_fl.cli import main

if __name__ == "__main__":
    main()
