"""onnxsim's structured pruning, run by the peers' Python: MODEL FEEDS.npz FOLDER writes one model for each setting."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxsim

SPARSITIES = (0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def main(model: str, feeds: str, folder: str) -> int:
    """Write FOLDER/NORM-SPARSITY.onnx for every setting that onnxsim does not fail at."""
    with np.load(feeds, allow_pickle=False) as arrays:
        name = arrays.files[0]
        calibration = [{name: image[None]} for image in arrays[name]]
    simplified = onnxsim.simplify(model)[0]
    for sparsity in SPARSITIES:
        for norm in ("l2", "wanda"):
            try:
                if norm == "l2":
                    pruned = onnxsim.apply_structured_pruning(simplified, sparsity=sparsity)
                else:
                    pruned = onnxsim.apply_structured_wanda_pruning(simplified, calibration, sparsity=sparsity)
            except Exception as error:  # whatever it raises, the bench goes on with the other settings
                print(f"{norm} at {sparsity}: {error}", file=sys.stderr)
                continue
            onnx.save(pruned, Path(folder) / f"{norm}-{sparsity}.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
