"""Models that are broken on purpose, each with the words that its complaint must have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Build = Callable[[Path], bytes]
"""Given the folder in which the model will lie, returns its bytes."""

MODELS = Path(__file__).resolve().parents[2] / "models"

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g'
LOCAL = '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[n] y)'
BODY = '<opset_import: ["" : 17, "l" : 1], domain: "l">'


def text(source: str, head: str = HEAD) -> Build:
    return lambda _: bytes(parser.parse_model(f"{head} {source}").SerializeToString())


def local(source: str) -> Build:
    return text(source, LOCAL)


def model(nodes: list[onnx.NodeProto], weights: list[TensorProto] | None = None, opset: int = 17) -> onnx.ModelProto:
    """Return a model from ``x``, four floats, to ``y``."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, ["n"])], weights or []
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def bytes_of(made: onnx.ModelProto) -> Build:
    return lambda _: made.SerializeToString()


def weight(**fields: object) -> Build:
    """Return a model that adds one weight ``w`` of these fields to its input."""
    add = [helper.make_node("Cast", ["w"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"])]
    return bytes_of(model(add, [TensorProto(name="w", **fields)], opset=21))  # type: ignore[arg-type]


def constant(tensor: TensorProto) -> Build:
    add = [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["y"])]
    return bytes_of(model(add))


def external(**entries: str) -> Build:
    """Return a model whose weight of 16 bytes is in another file, where there are files of several kinds."""

    def build(folder: Path) -> bytes:
        (folder / "w.bin").write_bytes(bytes(64))
        (folder / "sub").mkdir()
        os.mkfifo(folder / "fifo")
        (folder / "link").symlink_to("w.bin")
        tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        return model([helper.make_node("Add", ["x", "w"], ["y"])], [tensor]).SerializeToString()

    return build


def renamed(old: bytes, new: bytes, source: str) -> Build:
    """Return the model of ``source`` with ``old`` replaced by ``new``, of the same length, in its bytes."""
    return lambda folder: text(source)(folder).replace(old, new)


def ints(name: str, values: npt.ArrayLike) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def doubled_functions(depth: int) -> Build:
    source = "{ y = l.f39(x) }" + f"{BODY} f0 (a) => (b) {{ b = Relu(a) }}"
    for step in range(1, depth):
        source += f"{BODY} f{step} (a) => (b) {{ t = l.f{step - 1}(a)  b = l.f{step - 1}(t) }}"
    return local(source)


def nested_ifs(depth: int) -> onnx.ModelProto:
    """Return an If within an If, ``depth`` times."""
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "b", [], [])
    inner.output.add(name="r").type.tensor_type.elem_type = 1
    for step in range(depth):
        other = helper.make_graph([helper.make_node("Abs", ["x"], [f"e{step}"])], "e", [], [])
        other.output.add(name=f"e{step}").type.tensor_type.elem_type = 1
        node = helper.make_node("If", ["c"], [f"y{step}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph([node], "b", [], [])
        inner.output.add(name=f"y{step}").type.tensor_type.elem_type = 1
    made = model([*inner.node, helper.make_node("Identity", [f"y{depth - 1}"], ["y"])])
    made.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return made


def doubled(times: int) -> Build:
    """Return a constant that is concatenated with itself again and again."""
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(times)]
    nodes += [helper.make_node("ReduceSum", [f"c{times}"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    return bytes_of(model(nodes, [numpy_helper.from_array(np.ones(4, np.float32), "c0")]))


def counted(trips: str, cond: str = "d = Identity(c)") -> Build:
    return text(
        f"(float[4] x) => (float[n] y) <int64 n = {{{trips}}}, bool go = {{1}}> {{ y = Loop (n, go, x) "
        f"<body = b (int64 i, bool c, float[4] s) => (bool d, float[4] t) {{ {cond}  t = Add(s, s) }}> }}"
    )


def ranged(limit: str, delta: str = "1") -> Build:
    return text(
        f"(float[4] x) => (float[n] y) <int64 a = {{0}}, int64 b = {{{limit}}}, int64 c = {{{delta}}}> "
        "{ r = Range(a, b, c)  f = Cast <to = 1> (r)  s = ReduceSum <keepdims = 0> (f)  y = Add(x, s) }"
    )


def sparse(dims: list[int]) -> Build:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    held = onnx.SparseTensorProto(values=values, indices=ints("i", [2]), dims=dims)
    add = [helper.make_node("Constant", [], ["w"], sparse_value=held), helper.make_node("Add", ["x", "w"], ["y"])]
    return bytes_of(model(add))


def sparse_initializer(dims: list[int], at: int = 2) -> Build:
    made = model([helper.make_node("Add", ["x", "w"], ["y"])])
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    made.graph.sparse_initializer.add(values=values, indices=ints("i", [at]), dims=dims)
    return bytes_of(made)


def einsum(equation: str) -> Build:
    return text(f'(float[4] x) => (float[n] y) {{ y = Einsum <equation = "{equation}"> (x) }}')


RELU = "(float[4] x) => (float[n] y) { qqqq = Relu(x)  y = Relu(qqqq) }"

REFUSED: dict[str, tuple[Build, str]] = {
    # files
    "empty": (lambda _: b"", "is empty"),
    "text": (lambda _: b"hello " * 100, "not an ONNX model"),
    "cut in half": (lambda _: (MODELS / "mobilenet.onnx").read_bytes()[:90000], "truncated"),
    "no graph": (lambda _: b"\x08\x08", "holds no graph"),
    "name not UTF-8": (renamed(b"qqqq", b"\xff\xfe\xff\xfd", RELU), "not UTF-8"),
    "operator not UTF-8": (renamed(b"Relu", b"\xff\xfe\xff\xfd", RELU), "not UTF-8"),
    "dimension not UTF-8": (
        renamed(b"qqqq", b"\xff\xfe\xff\xfd", "(float[qqqq] x) => (float[n] y) { y = Relu(x) }"),
        "not UTF-8",
    ),
    "old IR": (bytes_of(onnx.ModelProto(ir_version=2, graph=onnx.GraphProto(name="g"))), "older than 3"),
    "no opset": (lambda f: text(RELU)(f).replace(b"B\x04\n\x00\x10\x11", b""), "opset_import"),
    # graphs
    "cycle": (text("(float[4] x) => (float[n] y) { a = Add(x, b)  b = Relu(a)  y = Relu(b) }"), "cycle"),
    "own result": (text("(float[4] x) => (float[n] y) { y = Add(x, y) }"), "cycle"),
    "out of order": (text("(float[4] x) => (float[n] y) { y = Relu(a)  a = Relu(x) }"), "out of order"),
    "dangling input": (text("(float[4] x) => (float[n] y) { y = Add(x, nope) }"), "'nope', which nothing produces"),
    "no such output": (text("(float[4] x) => (float[n] y) { z = Relu(x) }"), "nothing produces the output 'y'"),
    "two producers": (text("(float[4] x) => (float[n] y) { y = Relu(x)  y = Abs(x) }"), "'y' is produced twice"),
    "twice in a node": (text("(float[4] x) => (float[n] y) { y, y = Split <axis = 0> (x) }"), "produced twice"),
    "same inputs": (text("(float[4] x, float[4] x) => (float[n] y) { y = Relu(x) }"), "two inputs are called 'x'"),
    "same weights": (
        bytes_of(model([helper.make_node("Relu", ["x"], ["y"])], [ints("w", [1]), ints("w", [2])])),
        "two initializers are called 'w'",
    ),
    "no outputs": (text("(float[4] x) => () { y = Relu(x) }"), "returns nothing"),
    "no operator": (bytes_of(model([helper.make_node("", ["x"], ["y"])])), "op_type"),
    "unknown operator": (text("(float[4] x) => (float[n] y) { y = Frobnicate(x) }"), "Frobnicate"),
    "unknown domain": (text("(float[4] x) => (float[n] y) { y = acme.Frobnicate(x) }"), "acme"),
    "negative dimension": (bytes_of(helper.make_model(helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [-5])],
        [helper.make_tensor_value_info("y", 1, ["n"])]), ir_version=8)), "'x' is declared with the dimension -5"),
    "hundred dimensions": (text(f"(float[{','.join('1' * 100)}] x) => (float[n] y) {{ y = Relu(x) }}"), "100 dimen"),
    "huge input": (text("(float[1099511627776,1099511627776] x) => (float[n] y) { y = Relu(x) }"), "'x' is declared"),
    "huge vector": (text("(float[1099511627776] x) => (float[n] y) { y = Add(x, x) }"), "'x' is declared with"),
    # subgraphs and functions
    "If without branches": (text("(bool c) => (float[n] y) { y = If(c) }"), "else_branch"),
    "Loop without body": (text("(float[4] x, bool c) => (float[n] y) { y = Loop(, c, x) }"), "body"),
    "dangling in a branch": (
        text("(bool c) => (float[n] y) { y = If (c) <then_branch = t () => (float[n] a) { a = Relu(nope) }, "
             "else_branch = e () => (float[n] b) { b = Relu(nope) }> }"),
        "'nope', which nothing produces",
    ),
    "calls itself": (local(f"{{ y = l.f(x) }} {BODY} f (a) => (b) {{ b = l.f(a) }}"), "in a circle: f -> f"),
    "calls in a circle": (
        local(f"{{ y = l.f(x) }} {BODY} f (a) => (b) {{ b = l.g(a) }} {BODY} g (a) => (b) {{ b = l.f(a) }}"),
        "in a circle",
    ),
    "million millions of calls": (doubled_functions(40), "when they are inlined"),
    "dangling in a function": (local(f"{{ y = l.f(x) }} {BODY} f (a) => (b) {{ b = Relu(q) }}"), "function 'f'"),
    # attributes
    "text for a number": (text('(float[4] x) => (float[n] y) { y = Softmax <axis = "one"> (x) }'), "axis"),
    "unknown attribute": (text("(float[4] x) => (float[n] y) { y = Softmax <foo = 1> (x) }"), "foo"),
    "two ellipses": (einsum("......"), "equation '......' is malformed"),
    "dots": (einsum(".........."), "malformed"),
    # tensors
    "2^40 elements": (weight(data_type=1, dims=[2**40], raw_data=bytes(4)), "too small"),
    "2^64 elements": (weight(data_type=1, dims=[2**32, 2**32], raw_data=b""), "more than any machine holds"),
    "0 x 2^62 elements": (weight(data_type=1, dims=[0, 2**62], raw_data=b""), "more than any machine holds"),
    "negative size": (weight(data_type=1, dims=[-4], raw_data=bytes(16)), "negative dimension -4"),
    "short": (weight(data_type=1, dims=[4], raw_data=bytes(15)), "claims 16 bytes and holds 15"),
    "long": (weight(data_type=1, dims=[4], raw_data=bytes(20)), "claims 16 bytes and holds 20"),
    "no data": (weight(data_type=1, dims=[4]), "claims 4 elements and holds 0"),
    "wrong field": (weight(data_type=1, dims=[4], int32_data=[1] * 4), "claims 4 elements and holds 0"),
    "half an int4": (weight(data_type=TensorProto.INT4, dims=[4], raw_data=bytes(1)), "claims 2 bytes and holds 1"),
    "packed int4": (weight(data_type=TensorProto.INT4, dims=[4], int32_data=[1]), "claims 2 elements and holds 1"),
    "no type": (weight(data_type=0, dims=[1], raw_data=bytes(4)), "unknown type 0"),
    "bad type": (weight(data_type=999, dims=[1], raw_data=bytes(4)), "unknown type 999"),
    "raw strings": (weight(data_type=8, dims=[1], raw_data=bytes(4)), "strings as raw bytes"),
    "short constant": (constant(TensorProto(data_type=1, dims=[4], raw_data=bytes(4))), "Constant 'w'"),
    "sparse terabytes": (sparse([2**20, 2**20]), "unpacks to"),
    "sparse initializer of terabytes": (sparse_initializer([2**20, 2**20]), "unpacks to"),
    "sparse initializer out of range": (sparse_initializer([4], 4), "out of range"),
    "sparse initializer before the start": (sparse_initializer([4], -1), "out of range"),
    "sparse initializer of negative size": (sparse_initializer([-4]), "negative dimension"),
    # data in other files
    "absolute": (external(location="/etc/passwd"), "outside the model's folder"),
    "parent": (external(location="../w.bin"), "outside the model's folder"),
    "Windows": (external(location="C:\\w.bin"), "outside the model's folder"),
    "no location": (external(offset="0"), "external"),
    "link": (external(location="link"), "link"),
    "folder": (external(location="sub"), "no regular file"),
    "FIFO": (external(location="fifo"), "no regular file"),
    "missing": (external(location="zz"), "missing"),
    "beyond the end": (external(location="w.bin", offset="1099511627776", length="16"), "which has 64"),
    "negative offset": (external(location="w.bin", offset="-4"), "offset '-4'"),
    "negative length": (external(location="w.bin", length="-4"), "length '-4'"),
    "no number": (external(location="w.bin", offset="abc"), "offset 'abc'"),
    "too long": (external(location="w.bin"), "claims 16 bytes and holds 64"),
    "too short": (external(location="w.bin", length="8"), "claims 16 bytes and holds 8"),
    # work without end or result
    "smallest integer by -1": (
        bytes_of(model([helper.make_node("Div", ["a", "b"], ["c"]), helper.make_node("Cast", ["c"], ["d"], to=1),
                        helper.make_node("Add", ["x", "d"], ["y"])], [ints("a", [7, -(2**63)]), ints("b", [-1])])),
        "divides -9223372036854775808 by -1",
    ),
    "2^40 trips": (counted(str(2**40)), "runs its body 1099511627776 times"),
    "2^40 trips, go": (counted(str(2**40), "d = Constant <value = bool {1}> ()"), "runs its body"),
    "Range of terabytes": (ranged(str(2**40)), "makes 1099511627776 numbers"),
    "Range without steps": (ranged("9", "0"), "steps of 0"),
    "doubled forty times": (doubled(40), "repeats constants"),
}  # fmt: skip
"""By what is wrong: how to make it, and what the one line must say."""

ACCEPTED: dict[str, Build] = {
    "nested ten deep": bytes_of(nested_ifs(10)),
    "a loop": counted("3"),
    "a loop that stops itself": counted(str(2**62), "two = Constant <value = int64 {2}> ()  d = Less(i, two)"),
    "a Range": ranged("9"),
    "a sparse initializer": sparse_initializer([4]),
    "doubled four times": doubled(4),
    "a function": local(f"{{ y = l.f(x) }} {BODY} f (a) => (b) {{ b = Relu(a) }}"),
    "names of all kinds": renamed(b"qqqq", b"[/b]", RELU),
    "called NaN": text(RELU.replace("qqqq", "NaN")),
    "int4": weight(data_type=TensorProto.INT4, dims=[4], raw_data=b"\x12\x34"),
    "odd int4": weight(data_type=TensorProto.INT4, dims=[1], int32_data=[3]),
    "external": external(location="w.bin", offset="16", length="16"),
    "ellipsis": einsum("...i->...i"),
    "the shape of a ConstantOfShape": text(
        "(float[4] x) => (float[n] y) <int64[2] s = {1048576, 1}> "
        "{ c = ConstantOfShape(s)  d = Shape(c)  f = Cast <to = 1> (d)  r = ReduceSum <keepdims = 0> (f)  "
        "y = Add(x, r) }"
    ),
}
"""Odd and legal: the command proves the result itself."""
