"""Squares of sixteen by sixteen numbers, turned in registers: rows that lie along their columns ↔ rows side by side.

Element by element such a turn costs a load and a store for each, half of the time of a row of ten columns. Here whole
lines are loaded, and in four rounds, d = 1, 2, 4, 8, each line i without bit d is mixed with line i + d: numbers in
which i and j differ in that bit change places. After the last, number j of line i is number i of line j.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SIDE = 16

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _turned(builder: Any, lines: list[Any]) -> list[Any]:
    d = 1
    while d < SIDE:
        low = ir.Constant(ir.VectorType(_I32, SIDE), [j - d + SIDE if j & d else j for j in range(SIDE)])
        high = ir.Constant(ir.VectorType(_I32, SIDE), [j + SIDE if j & d else j + d for j in range(SIDE)])
        for i in range(SIDE):
            if not i & d:
                pair = lines[i], lines[i + d]
                lines[i], lines[i + d] = (builder.shuffle_vector(*pair, which) for which in (low, high))
        d *= 2
    return lines


@intrinsic
def square(
    _: Any, x: Any, at: Any, x_apart: Any, lines: Any, width: Any, y: Any, to: Any, y_apart: Any
) -> Any:  # fmt: skip
    """y[to + j · y_apart + i] = x[at + i · x_apart + j] for i < ``lines`` and j < ``width``, at most SIDE of either.

    Both arrays lie in one piece and hold numbers of one kind, whatever they mean. SIDE numbers are read of each line of
    x, of which there must be as many; nothing is written beside what is asked for.
    """

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.get_data_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(number)
        line = ir.VectorType(number, SIDE)
        source = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        target = context.make_array(signature.args[5])(context, builder, value=args[5]).data
        at, x_apart, lines, width = args[1:5]
        to, y_apart = args[6:]

        def place(base: Any, first: Any, apart: Any, k: Any) -> Any:
            return builder.bitcast(builder.gep(base, [builder.add(first, builder.mul(apart, k))]), line.as_pointer())

        last = builder.sub(lines, _I64(1))
        read = []
        for i in range(SIDE):  # lines that are not there: the last one, again
            here = builder.select(builder.icmp_unsigned("<", _I64(i), lines), _I64(i), last)
            read.append(builder.load(place(source, at, x_apart, here), align=size))
        counts = ir.VectorType(_I32, SIDE)
        many = builder.insert_element(ir.Constant(counts, ir.Undefined), builder.trunc(lines, _I32), _I32(0))
        many = builder.shuffle_vector(many, many, ir.Constant(counts, [0] * SIDE))
        asked = builder.icmp_unsigned("<", ir.Constant(counts, list(range(SIDE))), many)
        name = f"llvm.masked.store.v{SIDE}{'i' if isinstance(number, ir.IntType) else 'f'}{8 * size}.p0"
        kind = ir.FunctionType(ir.VoidType(), [line, line.as_pointer(), _I32, asked.type])
        store = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        for j, turned in enumerate(_turned(builder, read)):
            with builder.if_then(builder.icmp_unsigned("<", _I64(j), width)):
                builder.call(store, [turned, place(target, to, y_apart, _I64(j)), _I32(size), asked])
        return context.get_dummy_value()

    return types.void(x, *[types.int64] * 4, y, *[types.int64] * 2), make
