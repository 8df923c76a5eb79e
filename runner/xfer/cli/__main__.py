"""`python -m xfer.cli` is `xfer`."""

from __future__ import annotations

from xfer.cli.main import main

if __name__ == "__main__":
    main()
