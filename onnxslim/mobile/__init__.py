"""What leaves the house: provenance in the model, and the package that a phone's runtime wants."""

from __future__ import annotations

from onnxslim.mobile.manifest import Manifest, write_manifest
from onnxslim.mobile.operators import operators_of
from onnxslim.mobile.ort_package import OrtFiles, emit_ort, refuse_dynamic
from onnxslim.mobile.provenance import stamp

__all__ = ["Manifest", "OrtFiles", "emit_ort", "operators_of", "refuse_dynamic", "stamp", "write_manifest"]
