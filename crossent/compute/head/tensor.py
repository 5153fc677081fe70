"""The lazy tensor: a ``torch.Tensor`` with shape, dtype, device and gradient, and no numbers until somebody wants them.

Every function of torch that is given one comes to ``__torch_function__`` first. It looks the function up in ``TABLE``,
which ``stays`` and ``fused`` fill; what is not there gets the logits, made on the spot and with their graph. So the
answers are always those of the eager head, and the table only decides what they cost.

What goes round ``__torch_function__`` (autograd functions written in Python, collectives, whatever is written in C++)
comes to ``__torch_dispatch__``, below autograd. For its sake the tensor is a node of the graph like any other: a
gradient that arrives there becomes those of hidden states, weight and bias.

In-place changes: an operation that writes to lazy logits makes those of the tensor they are a view of, writes there,
and from then on all that were derived from it look there.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map

from crossent.compute.head.recipe import Recipe, Step
from crossent.compute.head.sharding import Sharding
from crossent.compute.head.watch import Watch

TABLE: dict[Any, Callable[..., Any]] = {}
"""Function of torch → what to do instead; it may answer NotImplemented, and then the logits are made."""

SUMS: set[Any] = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
"""Functions whose handler knows what to do with two lazy tensors; for all others the second is made."""


class Materialised(NamedTuple):
    """That lazy logits were made after all: by which operation, of which shape and size, on which line."""

    operation: str
    shape: tuple[int, ...]
    bytes: int
    place: str

    def __str__(self) -> str:
        return (
            f"lazy logits of shape {self.shape}, {self.bytes / 2**20:,.1f} MiB, were made for {self.operation} at "
            f"{self.place}."
        )


def _warn(event: Materialised) -> None:
    warnings.warn(f"{event} The answer is right; it is the memory that was to be saved.", UserWarning, stacklevel=2)


def _raise(event: Materialised) -> None:
    raise RuntimeError(f"{event} on_materialise='raise' forbids it; crossent.eager_head(model) undoes the lazy head.")


TELL: dict[str, Callable[[Materialised], Any] | None] = {"ignore": None, "warn": _warn, "raise": _raise}


def answers(*functions: Any) -> Callable[[Callable], Callable]:
    """Enter what is decorated in the table, for these functions of torch."""

    def enter(handler: Callable) -> Callable:
        TABLE.update(dict.fromkeys(functions, handler))
        return handler

    return enter


class LazyLogits(Tensor):
    """Logits that are not there: the recipe of them, with the looks of the tensor that they would be."""

    recipe: Recipe
    tell: str | Callable[[Materialised], Any]
    sharding: Sharding
    _real: Tensor | None
    _kin: tuple[tuple[Callable[[], LazyLogits | None], Callable[[Tensor], Tensor]], ...]
    _with_graph: bool
    _node: Any
    _watches: tuple[Watch, ...]

    @classmethod
    @torch.compiler.disable
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Answer without the logits, or make them and let torch answer."""
        kwargs = (
            {_NAMES.get(key, key): value for key, value in (kwargs or {}).items()} if func in TABLE else kwargs or {}
        )
        first = args[0] if args else kwargs.get("input")  # F.cross_entropy(input=…) may come by name
        if func in _LOOKS or (func in _OF_THE_GRAPH and isinstance(first, LazyLogits) and first.usable):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in TABLE and isinstance(first, LazyLogits) and first.usable and kwargs.get("out") is None:
            rest = {key: value for key, value in kwargs.items() if key != "out" and (args or key != "input")}
            if func in SUMS or not tree_any(lambda arg: isinstance(arg, LazyLogits), (args[1:], rest)):
                answer = TABLE[func](first, *args[1:], **rest)
                if answer is not NotImplemented:
                    return answer
        writes = _writes(func, kwargs)
        name = _name_of(func)

        def plain(arg: Any) -> Any:
            if not isinstance(arg, LazyLogits):
                return arg
            return arg.shared(name) if writes and arg is args[0] else arg.made(name)

        with_numbers = tree_map(plain, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*with_numbers[0], **with_numbers[1])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Below autograd: only numbers count here."""
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0].like(args[0].recipe, graph=False)

        def plain(arg: Any) -> Any:
            return arg.made(str(func)).detach() if isinstance(arg, LazyLogits) else arg

        with torch.no_grad():
            return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        with torch._C.DisableTorchFunctionSubclass():
            return f"LazyLogits(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made("pickle").__reduce_ex__(protocol)

    @property
    def usable(self) -> bool:
        """Whether the recipe still is what the tensor is: nobody has made, changed or rewired the logits."""
        with torch._C.DisableTorchFunctionSubclass():
            return not self._is_real and self.grad_fn is self._node

    @property
    def _elder(self) -> tuple[LazyLogits, Callable[[Tensor], Tensor]] | None:
        """The tensor of which this is a view, and how: the nearest that is still there."""
        return next(((elder, alias) for ref, alias in self._kin if (elder := ref()) is not None), None)

    @property
    def _is_real(self) -> bool:
        return self._real is not None or ((elder := self._elder) is not None and elder[0]._is_real)

    def made(self, operation: str) -> Tensor:
        """The logits as a plain tensor, with their graph; made once."""
        with torch._C.DisableTorchFunctionSubclass():
            if self.grad_fn is not self._node:  # somebody's autograd function stands between the recipe and us
                return _Plain.apply(self)
            elder = self._elder
            if self._real is None and elder is not None and elder[0]._is_real:
                self._real = elder[1](elder[0].made(operation))
            if self._real is None:
                self._report(operation)
                with self.at_hand(), torch.set_grad_enabled(self._with_graph):
                    values = self.recipe.values()
                    values = values.contiguous() if self.is_contiguous() else values  # as a copy of turned ones is
                    self._real = self.sharding.awaits(values)
            return self._real

    def shared(self, operation: str) -> Tensor:
        """The logits as a plain tensor that shares memory with the tensor it is a view of, to be written to."""
        elder = self._elder
        if elder is not None:
            self._real = elder[1](elder[0].shared(operation))
        return self.made(operation)

    def like(
        self, recipe: Recipe, *, graph: bool = True, alias: Callable[[Tensor], Tensor] | None = None, meta: Any = None
    ) -> LazyLogits:
        """Other lazy logits, made from these; ``alias`` says how the real ones come from the real ones, if as a view.

        ``meta`` has the looks of the new ones, where they are not simply contiguous.
        """
        self.check()
        new = lazy(recipe, self.tell, self.sharding, graph=graph, meta=meta)
        if alias is not None:
            new._kin = ((lambda: self, alias),) if graph else self._weakly(alias)
        new._watches = (*self._watches, *new._watches)
        return new

    def _weakly(self, alias: Callable[[Tensor], Tensor]) -> Any:
        """The kin of a detached view of this one: it must not keep the graph alive."""

        def after(earlier: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda real: alias(earlier(real))

        alive = [(elder, earlier) for ref, earlier in self._kin if (elder := ref()) is not None]
        return ((weakref.ref(self), alias), *((weakref.ref(elder), after(earlier)) for elder, earlier in alive))

    def check(self) -> None:
        """Refuse to make logits from a head or hidden states that have changed since."""
        for what in filter(None, (watch.changed() for watch in self._watches)):
            raise RuntimeError(
                f"these lazy logits of shape {tuple(self.recipe.hidden.shape[:-1])} × {self.recipe.classes} classes "
                f"can no longer be made: the {what} changed in place since the forward pass (by optimizer.step(), most "
                "likely). Use them before it, or keep what you need of them (logits.argmax(-1); all of them: "
                "logits.to(logits.dtype, copy=True)), or undo the lazy head: crossent.eager_head(model)."
            )

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Have hidden states and head at hand, as they were, and no autocast: the dtypes are decided."""
        self.check()
        with self.sharding.fetched(self.recipe.weight), torch.autocast(self.device.type, enabled=False):
            yield

    def _report(self, operation: str) -> None:
        tell = TELL[self.tell] if isinstance(self.tell, str) else self.tell
        if tell is not None:
            shape = tuple(self.shape)
            tell(Materialised(operation, shape, self.numel() * self.dtype.itemsize, _place()))


class _Node(torch.autograd.Function):
    """Hidden states and head in, lazy logits out: the way of a gradient that comes to the tensor itself."""

    @staticmethod
    def forward(ctx: Any, recipe: Recipe, meta: Tensor, *leaves: Tensor) -> LazyLogits:
        ctx.names = list(recipe.leaves)
        ctx.recipe = Recipe(meta, meta, None, recipe.at, tuple(Step(*step) for step in recipe.steps))
        ctx.save_for_backward(*leaves)
        return _wrapper(meta, recipe.hidden.device)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("lazy logits that went through an autograd function have no second derivative.")
        needed = ctx.needs_input_grad[2:]
        leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            z = ctx.recipe.on(dict(zip(ctx.names, leaves, strict=True))).values()
        given = iter(torch.autograd.grad(z, [leaf for leaf in leaves if leaf.requires_grad], dz))
        return None, None, *(next(given) if need else None for need in needed)


class _Plain(torch.autograd.Function):
    """Lazy logits in, the same numbers as a plain tensor out."""

    @staticmethod
    def forward(ctx: Any, z: LazyLogits) -> Tensor:
        z._report("an autograd function")
        with z.at_hand():
            return z.recipe.values()

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Tensor:
        return dz


def lazy(
    recipe: Recipe,
    tell: str | Callable[[Materialised], Any],
    sharding: Sharding,
    *,
    graph: bool = True,
    meta: Tensor | None = None,
) -> LazyLogits:
    """The lazy logits of a recipe, part of the graph or not; ``meta`` has their looks if they are not contiguous."""
    leaves = recipe.leaves
    graph = graph and torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves.values())
    if not graph:
        recipe = recipe.detached()
    if meta is None:
        lead = list(recipe.hidden.shape[:-1])
        shape = [*lead[: recipe.at], recipe.classes, *lead[recipe.at :]]
        meta = torch.empty(shape, dtype=recipe.hidden.dtype, device="meta")
    with torch._C.DisableTorchFunctionSubclass():
        new = _Node.apply(recipe, meta, *leaves.values()) if graph else _wrapper(meta, recipe.hidden.device)
        new.recipe, new.tell, new.sharding = recipe, tell, sharding
        new._real, new._kin = None, ()
        new._node = new.grad_fn
        new._with_graph = graph
        new._watches = (Watch(leaves),)
    return new


def _wrapper(meta: Tensor, device: torch.device) -> LazyLogits:
    return torch.Tensor._make_wrapper_subclass(
        LazyLogits, meta.shape, strides=meta.stride(), dtype=meta.dtype, device=device
    )


def looks(z: LazyLogits) -> Tensor:
    """A tensor on no device with the shape, strides and dtype of z: whatever moves it, moves z."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device="meta")


def _place() -> str:
    """The first line on the way up that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("torch.", "crossent.compute.")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(func.__self__, "__name__", name) if name in ("__get__", "__set__") else name


_CHANGES = {"__setitem__", "__set__", "retain_grad", "register_hook", "register_post_accumulate_grad_hook", "backward"}


def _writes(func: Any, kwargs: dict) -> bool:
    """Whether a function changes its first argument, or hangs something on it that later operations have to find."""
    name = getattr(func, "__name__", "")
    inplace = (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name != "__invert__")
    return (inplace and name not in ("__index__", "__int__", "__iter__")) or name in _CHANGES


_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x2": "other"}
"""NumPy's names for arguments, which torch takes for its own."""

_METHODS = """
    size dim ndimension numel nelement stride storage_offset element_size get_device is_floating_point is_complex
    is_contiguous is_signed is_inference is_conj is_neg is_same_size has_names _is_view _is_zerotensor
    __len__ __hash__ __format__
"""
_PROPERTIES = """
    shape dtype device ndim layout names is_cuda is_cpu is_meta is_mps is_xpu is_sparse is_sparse_csr is_quantized
    is_nested is_mkldnn is_vulkan is_ipu is_xla is_maia is_mtia itemsize nbytes output_nr name
    _version _base _backward_hooks
"""
_OF_THE_GRAPH = {getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "grad_fn")}
_LOOKS: set[Any] = {
    *(getattr(Tensor, name) for name in _METHODS.split() if hasattr(Tensor, name)),
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES.split() if hasattr(Tensor, name)),
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
    torch.is_same_size,
    Tensor.__repr__,
    Tensor.__reduce_ex__,
}
