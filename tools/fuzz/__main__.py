"""Fuzzing, one command: ``python tools/fuzz --seconds 60``.

Model bytes are mutated, half of them byte by byte and half as messages, and go through load, the exact pipeline and
save; what is accepted must compute the same as before. Child processes do the work, so that a crash, a hang or a full
memory is a finding and not the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.fuzz.driver import main

if __name__ == "__main__":
    sys.exit(main())
