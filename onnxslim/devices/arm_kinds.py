"""Kinds of ARM instructions: what distinguishes a kernel that uses dot products from one that does not.

Each rule is a mask, a value and a kind; an A64 instruction word is of the kind of the first rule that fits. The plugin
compiles them in (``guest/table.h``), so that there is one list of them. Encodings: Arm Architecture Reference Manual,
chapter C4; ``U``, ``Q`` and the size are masked out where forms differ in nothing else.
"""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    """What an instruction does; values are as reports spell them."""

    ALU = "alu"
    BRANCH = "branch"
    """With what the manual puts beside them: exceptions, hints, barriers and system registers."""
    LOAD = "load"
    """With prefetches and atomic operations, which load and store."""
    STORE = "store"
    FMA = "fma"
    """Multiplications in floating point that add, of vectors or scalars, of any precision."""
    MLA = "int mla"
    """Integer products of vectors, with or without adding: what kernels use where there are no dot products."""
    DOT = "dot"
    """Four 8-bit products (or two of bfloat16) into each 32-bit lane: Armv8.2."""
    MMLA = "mmla"
    """Products of small matrices: i8mm, Armv8.6."""
    SIMD = "other simd"
    """All other work on vector and floating-point registers, SVE and SME."""


KINDS = tuple(Kind)

_DOT_PRODUCTS = (
    (0x9FE0FC00, 0x0E809400, Kind.DOT),  # SDOT, UDOT
    (0x9FC0F400, 0x0F80E000, Kind.DOT),  # … by element
    (0xBFE0FC00, 0x0E809C00, Kind.DOT),  # USDOT
    (0xBFC0F400, 0x0F80F000, Kind.DOT),  # … by element
    (0xBFC0F400, 0x0F00F000, Kind.DOT),  # SUDOT by element
    (0xBFE0FC00, 0x2E40FC00, Kind.DOT),  # BFDOT
    (0xBFC0F400, 0x0F40F000, Kind.DOT),  # … by element
)
_MATRIX_PRODUCTS = (
    (0xDFE0FC00, 0x4E80A400, Kind.MMLA),  # SMMLA, UMMLA
    (0xFFE0FC00, 0x4E80AC00, Kind.MMLA),  # USMMLA
    (0xFFE0FC00, 0x6E40EC00, Kind.MMLA),  # BFMMLA
)
_FLOAT_PRODUCTS = (
    (0xBF20FC00, 0x0E20CC00, Kind.FMA),  # FMLA, FMLS
    (0xBF80B400, 0x0F801000, Kind.FMA),  # … by element
    (0xBF60FC00, 0x0E400C00, Kind.FMA),  # … of half precision
    (0xBFC0B400, 0x0F001000, Kind.FMA),  # … by element
    (0xFF80B400, 0x5F801000, Kind.FMA),  # … of one element
    (0xFF000000, 0x1F000000, Kind.FMA),  # FMADD, FMSUB, FNMADD, FNMSUB
    (0xBF60FC00, 0x0E20EC00, Kind.FMA),  # FMLAL, FMLSL: half into single precision
    (0xBF60FC00, 0x2E20CC00, Kind.FMA),  # FMLAL2, FMLSL2
    (0xBFC0B400, 0x0F800000, Kind.FMA),  # … by element
    (0xBFC0B400, 0x2F808000, Kind.FMA),
    (0xBFE0FC00, 0x2EC0FC00, Kind.FMA),  # BFMLALB, BFMLALT
    (0xBFC0F400, 0x0FC0F000, Kind.FMA),  # … by element
)
_INTEGER_PRODUCTS = (
    (0x9F20FC00, 0x0E209400, Kind.MLA),  # MLA, MLS
    (0xBF20FC00, 0x0E209C00, Kind.MLA),  # MUL
    (0x9F20DC00, 0x0E208000, Kind.MLA),  # SMLAL, UMLAL, SMLSL, UMLSL
    (0x9F20FC00, 0x0E20C000, Kind.MLA),  # SMULL, UMULL
    (0xBF00B400, 0x2F000000, Kind.MLA),  # MLA, MLS by element
    (0xBF00F400, 0x0F008000, Kind.MLA),  # MUL by element
    (0x9F00B400, 0x0F002000, Kind.MLA),  # SMLAL, UMLAL, SMLSL, UMLSL by element
    (0x9F00F400, 0x0F00A000, Kind.MLA),  # SMULL, UMULL by element
)
_MEMORY = (
    (0xBE400000, 0x0C400000, Kind.LOAD),  # structures of vectors: LD1 … LD4
    (0xBE400000, 0x0C000000, Kind.STORE),
    (0x3F400000, 0x08400000, Kind.LOAD),  # exclusive and ordered
    (0x3F400000, 0x08000000, Kind.STORE),
    (0x3B000000, 0x18000000, Kind.LOAD),  # literals
    (0x3FC00000, 0x19000000, Kind.STORE),  # ordered, unscaled
    (0x3A400000, 0x28400000, Kind.LOAD),  # pairs
    (0x3A400000, 0x28000000, Kind.STORE),
    (0x3B200C00, 0x38200000, Kind.LOAD),  # atomic operations
    (0x3AC00000, 0x38000000, Kind.STORE),  # one register
    (0xFEC00000, 0x3C800000, Kind.STORE),  # one of 128 bits
    (0x0A000000, 0x08000000, Kind.LOAD),  # what is left of loads and stores
)
RULES = (
    *_DOT_PRODUCTS,
    *_MATRIX_PRODUCTS,
    *_FLOAT_PRODUCTS,
    *_INTEGER_PRODUCTS,
    (0x0E000000, 0x0E000000, Kind.SIMD),
    (0x1E000000, 0x04000000, Kind.SIMD),  # SVE
    (0x9E000000, 0x80000000, Kind.SIMD),  # SME
    *_MEMORY,
    (0x1C000000, 0x14000000, Kind.BRANCH),
    (0x00000000, 0x00000000, Kind.ALU),
)


def kind_of(word: int) -> Kind:
    """Return the kind of an A64 instruction word."""
    return next(kind for mask, value, kind in RULES if word & mask == value)


def table() -> str:
    """Return the rules as the plugin's C source includes them."""
    rows = (f"    {{0x{mask:08x}, 0x{value:08x}, {KINDS.index(kind)}}}," for mask, value, kind in RULES)
    return "\n".join((f"#define CLASSES {len(KINDS)}", "static const struct rule rules[] = {", *rows, "};", ""))
