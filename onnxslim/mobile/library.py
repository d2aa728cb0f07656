"""How large the runtime itself is, with all its operators and with those that a model needs, as far as it is known.

What a reduced build takes is known when it was built. So this says what is known: the library that is installed here,
what was published of libraries for phones, and how many of the kernels a configuration keeps. Source of the published
sizes: onnxruntime's documentation, "How to develop a mobile application", library file sizes of release 1.13.1
(October 2022) on Android arm64; taken out in August 2024 with the package it calls onnxruntime-mobile (microsoft/
onnxruntime pull request 21605). Newer releases are larger.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import Any

from onnxslim.mobile.operators import Required
from onnxslim.runtime.kernels import library_bytes, registered_kernels
from onnxslim.runtime.sessions import version

PUBLISHED = {
    "release": "1.13.1",
    "system": "Android arm64",
    "full_bytes": 12_200_000,
    "reduced_bytes": 3_200_000,
    "reduced": "onnxruntime-mobile: the operators of common models, ORT format only",
    "source": "onnxruntime's documentation, How to develop a mobile application, until August 2024",
}
BASIS = "kernels for the CPU in the installed onnxruntime; required: those of the configuration's operators, all types"


def library_facts(required: Iterable[Required]) -> dict[str, Any]:
    """Return the manifest's ``library``: sizes with what they are of, and kernels; what is not known is absent."""
    size, kernels = library_bytes(), registered_kernels()
    facts: dict[str, Any] = {"published": PUBLISHED}
    if size is not None:
        facts["installed"] = {"release": version(), "system": _system(), "full_bytes": size}
    if kernels:
        wanted = set(required)
        kept = sum(
            any((domain, op) == (each.domain, each.op) and each.first <= since <= each.last
                for domain, since, op in wanted)
            for each in kernels
        )  # fmt: skip
        facts["kernels"] = {"registered": len(kernels), "required": kept, "basis": BASIS}
    return facts


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"
