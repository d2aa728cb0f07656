"""``python -m onnxslim`` is the command ``onnxslim``."""

from __future__ import annotations

import sys

from onnxslim.cli.main import main

sys.exit(main())
