"""Run a plain script with the C library's allocator set as xfer sets it for itself.

    python with_tuned_allocator.py SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from xfer.backends.torch.allocator import tune

if __name__ == "__main__":
    tune()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(Path(__file__).with_name(sys.argv[0])), run_name="__main__")
