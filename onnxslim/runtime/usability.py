"""onnxruntime's own checker for NNAPI and Core ML, with its answers node by node.

It looks operators up by name in lists that come with onnxruntime, and at whether the shapes that a node reads are
fixed; of what the lists say in words ("only 2-D") it checks nothing. Source: onnxruntime.tools.mobile_helpers.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import onnx

NNAPI = "nnapi_supported_ops.md"
CORE_ML = "coreml_supported_mlprogram_ops.md"
CORE_ML_OLD = "coreml_supported_neuralnetwork_ops.md"
"""The format of Core ML before iOS 15, and still the provider's default."""


@dataclass(frozen=True)
class Usability:
    """What the checker said of a graph."""

    taken: frozenset[str]
    """First outputs of nodes that it counts as running."""
    unlisted: frozenset[str]
    """First outputs of nodes whose operator is in no list."""
    caveats: tuple[str, ...]
    """What the list says in words of operators that are in the graph, and nobody checks."""


class UsabilityError(Exception):
    """The checker itself failed."""


def check_usability(graph: onnx.ModelProto, listed: str) -> Usability:
    """Ask the checker about a graph as onnxruntime hands it out.

    Args:
        graph: without weights it is enough; inputs in place of weights would not count as fixed.
        listed: which list, one of the constants of this module.

    Raises:
        UsabilityError: it cannot read the graph.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker

    copy = _readable(graph)
    check = usability_checker.check_nnapi_partitions if listed == NNAPI else usability_checker.check_coreml_partitions
    arguments = [] if listed == NNAPI else [listed]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            info = check(copy, True, *arguments)
            ops = info.supported_ops_checker
            unlisted = [node for node in _nodes(copy.graph) if not ops.is_op_supported(node)]
            caveats = tuple(ops.get_caveats())
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError, OSError) as error:
        raise UsabilityError(f"onnxruntime's checker fails on the graph: {type(error).__name__}: {error}") from error
    taken = (node for group in info.supported_groups for node in group)
    return Usability(
        frozenset(node.output[0] for node in taken), frozenset(node.output[0] for node in unlisted), caveats
    )


def _readable(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with shapes that the checker can read.

    An input that is left out counts as fixed, and every Transpose has the attribute that the checker asks for; of its
    value the checker wants the length alone, to tell the dimensions.
    """
    copy = onnx.shape_inference.infer_shapes(graph)
    copy.graph.initializer.add(name="")
    for node in _nodes(copy.graph):
        if node.op_type == "Transpose" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("perm", [0], attr_type=onnx.AttributeProto.INTS))
    return copy


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return all nodes, those of subgraphs too."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _nodes(attribute.g)
    return found
