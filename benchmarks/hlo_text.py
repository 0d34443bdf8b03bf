"""Reads the text of a compiled program: its instructions, the bytes they move, the arithmetic they do, their part.

Bytes are those of an instruction's operands and results, each once: what a kernel must move at least. A fusion is one
kernel. Arithmetic is that of matrix products, convolutions and fused attention; a multiply-add counts 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

#: Scopes of the network and of the training step, in the order in which they are looked for in an instruction's name.
PARTS = ("optimizer", "loss", "heatmap_heads", "score_heads", "tags", "decoder", "encoder", "vit")

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
_CALLS = re.compile(  # one name, or several in braces: "condition=%cond, body=%body" are two
    r"(?:calls|body|condition|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
#: These move nothing: names, views and constants.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a program."""

    name: str
    opcode: str
    results: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and shape of each array
    operands: tuple[str, ...]
    calls: tuple[str, ...]  # names of the computations that it runs
    op_name: str  # scopes and operation of the traced program
    text: str

    @property
    def target(self) -> str:
        """Of a custom call, else ""."""
        target = re.search(r'custom_call_target="([^"]*)"', self.text)
        return target[1] if target else ""

    @property
    def part(self) -> str:
        """The scope that it belongs to; "other" outside of all."""
        return next((part for part in PARTS if part in self.op_name), "other")


def size(results: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    """Bytes of arrays."""
    return sum(_BYTES[dtype] * math.prod(shape) for dtype, shape in results)


class Program:
    """A compiled program, read from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            header = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{", line)
            if header:
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (instruction := _instruction(line)):
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")

    def kernels(self) -> list[Instruction]:
        """What runs, in order: the instructions of the entry and, once for each, of the loops and calls in it."""
        return list(self._kernels(self.entry))

    def _kernels(self, computation: str):
        for instruction in self.computations[computation].values():
            if instruction.opcode in ("while", "call", "conditional", "async-start"):
                for name in instruction.calls:
                    yield from self._kernels(name)
            elif instruction.opcode not in _FREE:
                yield instruction

    def op_names(self) -> dict[str, str]:
        """Scopes and operation of every kernel by name; those of its parts where a fusion has none of its own."""
        return {kernel.name: self.op_name(kernel) for kernel in self.kernels()}

    def op_name(self, kernel: Instruction) -> str:
        """The name of a kernel in the traced program."""
        if any(part in kernel.op_name for part in PARTS):
            return kernel.op_name
        inner = [i.op_name for name in kernel.calls for i in self.computations.get(name, {}).values()]
        return next((name for name in inner if any(part in name for part in PARTS)), kernel.op_name)

    def bytes_of(self, kernel: Instruction) -> int:
        """Bytes that a kernel reads and writes at least. A slice or gather reads no more than it returns."""
        scope = next(c for c in self.computations.values() if c.get(kernel.name) is kernel)
        read = sum(size(scope[name].results) for name in set(kernel.operands) if name in scope)
        written = size(kernel.results)
        if kernel.opcode in ("dynamic-slice", "gather", "slice"):
            read = min(read, written)
        return read + written

    def flops_of(self, kernel: Instruction) -> int:
        """Floating-point operations of a kernel's products, convolutions and attention."""
        scope = next(c for c in self.computations.values() if c.get(kernel.name) is kernel)
        return self._flops(kernel, scope)

    def _flops(self, instruction: Instruction, scope: dict[str, Instruction]) -> int:
        shape = functools.partial(_operand_shape, instruction, scope)
        if instruction.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
            factors = [shape(0)[int(d)] for d in contracted[1].split(",") if d] if contracted else []
            return 2 * math.prod(instruction.results[0][1]) * math.prod(factors)
        if instruction.opcode == "convolution" or "$conv" in instruction.target:
            return _convolution(instruction, shape)
        if "$fmha" in instruction.target:
            dims = re.search(r'"intermediate_tensor_shape".*?"dimensions": ?\[([^\]]*)\]', instruction.text)
            sizes = [int(d) for d in re.findall(r"\d+", dims[1])]  # batch, heads, queries, keys
            width = instruction.results[0][1][-1]
            products = 5 if "Backward" in instruction.target else 2  # the backward kernel computes the logits again
            return 2 * products * math.prod(sizes) * width
        if "$gemm" in instruction.target or "$lt$matmul" in instruction.target or "matmul" in instruction.target:
            return _gemm(instruction, shape)
        inner = (self.computations[name] for name in instruction.calls if name in self.computations)
        return sum(self._flops(i, body) for body in inner for i in body.values()) if instruction.calls else 0


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    name, rest = match.groups()
    body = rest.split(", metadata={")[0]
    opcode = _OPCODE.search(body)
    if not opcode:
        return None
    results = _arrays(body[: opcode.start()])
    arguments = body[opcode.end() :]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments.split(")")[0]))
    calls = _CALLS.findall(body)
    if opcode[1] in ("reduce", "sort", "scatter", "select-and-scatter", "reduce-window", "map", "all-reduce"):
        calls = []
    op_name = re.search(r'op_name="([^"]*)"', rest)
    names = tuple(name.strip().lstrip("%") for group in calls for name in group.strip("{}").split(","))
    return Instruction(name, opcode[1], results, operands, names, op_name[1] if op_name else "", rest)


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _ARRAY.findall(text))


def _operand_shape(instruction: Instruction, scope: dict[str, Instruction], number: int) -> tuple[int, ...]:
    return scope[instruction.operands[number]].results[0][1]


def _convolution(instruction: Instruction, shape) -> int:
    """2 · products of the sizes of input, kernel and output that a tap joins; padding counts as if it were data."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.text)
    if not labels:
        return 0
    # Whichever of the three arrays is the result, a pass multiplies each output pixel with each weight.
    arrays = [shape(0), shape(1), instruction.results[0][1]]
    if "BackwardInput" in instruction.target:
        arrays = [instruction.results[0][1], shape(1), shape(0)]
    elif "BackwardFilter" in instruction.target:
        arrays = [shape(0), instruction.results[0][1], shape(1)]
    kernel, output = arrays[1], arrays[2]
    features = kernel[labels[2].index("o")]
    return 2 * math.prod(output) * math.prod(kernel) // features


def _gemm(instruction: Instruction, shape) -> int:
    contracted = re.search(r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.text)
    factors = [shape(0)[int(d)] for d in re.findall(r"\d+", contracted[1])] if contracted else [shape(0)[-1]]
    return 2 * math.prod(instruction.results[0][1]) * math.prod(factors)
