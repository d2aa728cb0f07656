"""QNN's rules against what the provider said: models of one node, asked of onnxruntime-qnn 2.7.0 (soc_model 57).

``qnn_answers.txt`` has a line for each operator and type: the answers for 1 to 6 dimensions (``y``, ``n``, ``.`` where
it was not asked). ``qu8`` is an operator within pairs of uint8; layers have ``data/weights``, and ``pc`` for a scale
for each channel. The rules were made from these answers and others; this keeps them true when they are edited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from targets.texts import paired, paired_conv, told

LINES = (Path(__file__).parent / "qnn_answers.txt").read_text(encoding="utf-8").split("\n")
KINDS = {
    "f16": "float16", "f32": "float", "i32": "int32", "i64": "int64", "bool": "bool", "u8": "uint8", "s8": "int8",
    "u16": "uint16", "s16": "int16",
}  # fmt: skip
SIZES = (1, 4, 6, 8, 3, 2)
BINARY = frozenset({
    "Add", "And", "BitwiseAnd", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
    "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Xor",
})  # fmt: skip


def answers() -> Iterator[tuple[str, str, int, str]]:
    """Yield operator, type, dimensions and the answer."""
    for line in LINES:
        op, kind, *rest = line.split() or ("", "")
        if len(rest) == 1:
            yield from ((op, kind, rank, answer) for rank, answer in enumerate(rest[0], 1) if answer in "yn")


def text(op: str, kind: str, rank: int) -> str:
    """Return the model of one node that was asked about."""
    shape = ",".join(map(str, SIZES[:rank] if rank > 1 else (8,)))
    second = op in BINARY
    made = "0" if op in ("Shape", "Size", "NonZero") else shape
    inputs = "d, e" if second else "d, a" if op.startswith("Reduce") else "d"
    attributes = "<fmod = 1>" if op == "Mod" and kind in ("f16", "f32") else ""
    axes = f"int64[1] a = {{{rank - 1}}}"
    layer = f"c = {op}{attributes}({inputs})"
    if kind.startswith("q"):
        integers = KINDS[kind[1:]]
        more = "e = DequantizeLinear(v, s, z)" if second else ""
        given = f", {integers}[{shape}] v" if second else ""
        model = paired(layer, shape, made, integers, more=more, weights=given)
        return model.replace("<float s", f"<{axes}, float s", 1)
    given = f", {KINDS[kind]}[{shape}] e" if second else ""
    return f"({KINDS[kind]}[{shape}] d{given}) => ({KINDS[kind]}[{made}] c) <{axes}> {{ {layer} }}"


def layer_text(op: str, kind: str, channels: bool) -> str:
    """Return the model of one layer that was asked about."""
    if kind == "f32":
        conv = "(float[1,3,8,8] d, float[8,3,3,3] w, float[8] wb) => (float[1,8,6,6] c) { c = Conv(d, w, wb) }"
        return conv if op == "Conv2" else "(float[3,4] d, float[4,5] w) => (float[3,5] c) { c = MatMul(d, w) }"
    data, weights = (KINDS[one] for one in kind.removeprefix("q").split("/"))
    if op == "Conv2":
        return paired_conv(data, weights, channels=channels)
    scale = ", float[5] ws" if channels else ""
    more = "e = DequantizeLinear<axis = 1>(w, ws)" if channels else "k = Constant<value = float {0.1}>() %s"
    more = more % "e = DequantizeLinear(w, k)" if "%s" in more else more
    return paired("c = MatMul(d, e)", "3,4", "3,5", data, more=more, weights=f", {weights}[4,5] w{scale}")


def test_no_definite_verdict_is_wrong() -> None:
    """What is unknown is neither; of what runs nothing may be."""
    verdicts: Counter[tuple[str, str]] = Counter()
    for op, kind, rank, answer in answers():
        verdict, reason = told(text(op, kind, rank), "qnn", 21)["c"]
        assert (verdict, answer) not in (("runs", "n"), ("refused", "y")), f"{op} {kind} {rank}: {reason}"
        verdicts[verdict, answer] += 1
    assert verdicts["runs", "y"] > 600
    assert verdicts["refused", "n"] > 350
    assert verdicts["unknown", "y"] == 0


def test_layers_by_their_integers() -> None:
    for line in LINES:
        op, kind, *rest = line.split() or ("", "")
        if len(rest) != 2:
            continue
        verdict, reason = told(layer_text(op, kind, rest[0] == "pc"), "qnn", 21)["c"]
        assert verdict == {"y": "runs", "n": "refused"}[rest[1]], f"{line}: {reason}"
