"""Arrays inside kernels, of which no slice is counted.

Numba counts who refers to an array's memory, by a step that all cores wait for. Each slice is counted, and uncounted
when it is no longer needed: some 30 ns, as long as a hundred columns. Whoever calls a kernel keeps its arrays until
it returns, so that they need not be counted meanwhile: a kernel that works on blocks of rows begins with ``lent``.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import for_kernels


@intrinsic
def shaped(_: Any, data: Any, shape: Any) -> Any:
    """The first numbers of an array that lie one after the other, in a shape, uncounted; the shape is not checked."""
    kind = types.Array(data.dtype, shape.count, "C")

    def view(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        lengths = [builder.extract_value(args[1], axis) for axis in range(shape.count)]
        item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(data.dtype)))
        steps = [item]
        for length in reversed(lengths[1:]):
            steps.insert(0, builder.mul(steps[0], length))
        array.data = context.make_array(data)(context, builder, value=args[0]).data
        array.shape, array.strides = cgutils.pack_array(builder, lengths), cgutils.pack_array(builder, steps)
        array.itemsize, array.nitems = item, reduce(builder.mul, lengths)
        array.meminfo, array.parent = (cgutils.get_null_value(owner.type) for owner in (array.meminfo, array.parent))
        return array._getvalue()

    return kind(data, shape), view


@for_kernels
def lent(x: Any) -> Any:
    """An array that lies in one piece, or what is strided, uncounted."""


@overload(lent, strict=False)
def _lent(x: Any) -> Any:
    if isinstance(x, types.Array):
        return lambda x: shaped(x, x.shape)
    return lambda x: Strided(shaped(x.data, x.data.shape), x.n, x.v, x.inner, x.sn, x.sv, x.si)
