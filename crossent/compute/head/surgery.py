"""Which module of a model is its head; making it lazy, and undoing it.

A head stays the object that it was, with the parameters, hooks and names that it had: only its class changes, from
``nn.Linear`` to a subclass of it whose ``forward`` returns lazy logits. So weights stay tied, state dicts keep their
keys, and undoing gives the class back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crossent.compute.head.recipe import Recipe
from crossent.compute.head.sharding import Sharding
from crossent.compute.head.tensor import TELL, Materialised, lazy
from crossent.errors import some

HEADS = ("lm_head", "head", "output_projection", "output", "classifier", "score", "fc", "decoder", "proj_out")
"""How models call their head, if they say nothing else about it."""


class LazyLinear(nn.Linear):
    """An ``nn.Linear`` whose output is lazy: see ``lazy_head``, which makes one and no other way does."""

    on_materialise: str | Callable[[Materialised], Any]

    def forward(self, input: Tensor) -> Tensor:
        """Lazy logits, or plain ones where somebody looks on who needs them."""
        if torch.compiler.is_compiling() and _in_one_graph():
            return super().forward(input)
        return self._lazy(input)

    @torch.compiler.disable  # a compiled model has a break here, and lazy logits after it
    def _lazy(self, input: Tensor) -> Tensor:
        x: Tensor = input
        w: Tensor = self.weight
        b: Tensor | None = self.bias
        if _must_be_plain(x, w, b):
            return super().forward(input)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            narrow = torch.get_autocast_dtype(x.device.type)
            x, w, b = x.to(narrow), w.to(narrow), None if b is None else b.to(narrow)
        if x.dtype != w.dtype or x.shape[-1:] != w.shape[1:] or x.device != w.device:
            return super().forward(input)  # torch says what is wrong
        # A module that was sharded by itself fetches its parameters by itself.
        sharding = Sharding((self,)) if hasattr(self, "unshard") else Sharding()
        return lazy(Recipe(x, w, b, x.dim() - 1), self.on_materialise, sharding)


@torch.compiler.assume_constant_result
def _in_one_graph() -> bool:
    """Whether the compiler that looks on allows no break: fullgraph=True, or an export."""
    if torch.compiler.is_exporting():
        return True
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        translator = InstructionTranslator.current_tx()
        return bool(translator.one_graph or translator.error_on_graph_break)
    except (ImportError, AttributeError):
        return True  # not known: plain logits are right everywhere


def _must_be_plain(x: Tensor, *head: Tensor | None) -> bool:
    """Whether a tracer or torch.func looks on, or the tensors are of a kind of their own."""
    if torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    plain = all(type(leaf) in (Tensor, nn.Parameter, nn.Buffer, type(None)) for leaf in (x, *head))
    elsewhere = any(hasattr(leaf, "ds_id") for leaf in head)  # ZeRO-3 keeps parameters in pieces between calls
    return not plain or elsewhere or x.device.type == "meta" or x.dim() == 0 or not x.is_floating_point()


def lazy_head(
    model: nn.Module,
    *,
    head: str | nn.Module | Iterable[str | nn.Module] | None = None,
    on_materialise: str | Callable[[Materialised], Any] = "ignore",
) -> nn.Module:
    """Make the output projection of a model return lazy logits: no logits are stored until somebody needs them.

    Args:
        model: any module, of Hugging Face's or one's own; it is changed in place.
        head: the ``nn.Linear`` that is the head, by name or as a module, or several of them; found if not said: what
            the model's ``get_output_embeddings()`` gives, a layer tied to an embedding, or one called as heads are.
        on_materialise: what to do when logits are made after all: ``"ignore"``, ``"warn"``, ``"raise"``, or a function
            that gets a ``Materialised``: the operation, shape, bytes and line.

    Returns:
        The model itself.

    Raises:
        ValueError, TypeError: no head is found, several could be it, or it is no plain ``nn.Linear``: a sentence.

    ``F.cross_entropy``, ``F.nll_loss`` of ``F.log_softmax``, gather, argmax, topk, max and logsumexp of lazy logits are
    answered without them; see docs/guides/lazy-logits.md for the whole list and for what stays lazy. Everything else
    gets the logits, with their graph. Accuracy: that of ``linear_cross_entropy``.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1000))
    >>> logits = lazy_head(model)(torch.ones(2, 4))
    >>> logits
    LazyLogits(shape=(2, 1000), dtype=torch.float32, device='cpu')
    >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2]))  # no logits were stored for this
    >>> eager_head(model)[2]
    Linear(in_features=8, out_features=1000, bias=True)
    """
    if isinstance(on_materialise, str) and on_materialise not in TELL:
        raise ValueError(
            f"on_materialise must be one of {', '.join(map(repr, TELL))} or a function; got {on_materialise!r}."
        )
    heads = list(_found(model) if head is None else _named(model, head))
    for name, module in heads:
        _refuse_unless_linear(name, module)
    for _, module in heads:
        if not isinstance(module, LazyLinear):
            module.__class__ = LazyLinear
        module.on_materialise = on_materialise  # type: ignore[assignment]
    return model


def eager_head(model: nn.Module) -> nn.Module:
    """Undo ``lazy_head``: every head is the ``nn.Linear`` again that it was. Returns the model itself."""
    lazies = [(name, module) for name, module in model.named_modules() if isinstance(module, LazyLinear)]
    for name, module in lazies:
        if type(module) is not LazyLinear:
            raise TypeError(
                f"{name!r} became a {type(module).__name__} after lazy_head (fully_shard does that), which cannot be "
                "undone: make another model, or call eager_head first and fully_shard after it."
            )
    for _, module in lazies:
        del module.on_materialise
        module.__class__ = nn.Linear  # type: ignore[assignment]
    return model


def _found(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The head of a model that says which it is, or the one module that must be it."""
    names = {module: name for name, module in model.named_modules()}
    getter = getattr(model, "get_output_embeddings", None)
    said = getter() if callable(getter) else None
    if isinstance(said, nn.Module):
        return _inside(names.get(said, type(said).__name__), said)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tied = {name: module for name, module in linears.items() if id(module.weight) in embeddings}
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    outputs = {name: module for name, module in linears.items() if module.out_features == labels}
    called = {name: module for name, module in linears.items() if name.rpartition(".")[2] in HEADS}
    last = {}
    if isinstance(model, nn.Sequential) and len(model) and isinstance(model[-1], nn.Linear):
        last = {names[model[-1]]: model[-1]}
    for candidates in (outputs, tied, called, last, linears):
        if len(candidates) == 1:
            return candidates.items()
        if candidates:
            raise ValueError(
                f"{type(model).__name__} has several layers that could be its head: {some(list(candidates))}. "
                "Say which: crossent.lazy_head(model, head='…'), or several in a list."
            )
    raise ValueError(
        f"{type(model).__name__} has no torch.nn.Linear that could be its head. lazy_head replaces the last layer, "
        "hidden states times a matrix; a model that multiplies by itself can call crossent.linear_cross_entropy."
    )


def _named(model: nn.Module, head: Any) -> Iterable[tuple[str, nn.Module]]:
    for one in [head] if isinstance(head, (str, nn.Module)) else head:
        if isinstance(one, nn.Module):
            yield from _inside(type(one).__name__, one)
            continue
        try:
            module = model.get_submodule(one)
        except AttributeError:
            linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            raise ValueError(
                f"{type(model).__name__} has no module {one!r}. Its linear layers end with: {some(linears[-5:])}."
            ) from None
        yield from _inside(one, module)


def _inside(name: str, module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """A head itself, or, of a head that is made of several layers (LoRA), those with as many columns as its widest."""
    if isinstance(module, nn.Linear) or not list(module.children()):
        return [(name, module)]
    parts = [(f"{name}.{part}", m) for part, m in module.named_modules() if isinstance(m, nn.Linear)]
    widest = max((m.out_features for _, m in parts), default=0)
    return [(part, m) for part, m in parts if m.out_features == widest] or [(name, module)]


def _refuse_unless_linear(name: str, module: nn.Module) -> None:
    if type(module) in (nn.Linear, LazyLinear):
        return
    if isinstance(module, LazyLinear) and type(module).forward is LazyLinear.forward:
        return  # sharded since
    raise TypeError(
        f"the head {name!r} is a {type(module).__module__}.{type(module).__qualname__} and no torch.nn.Linear: only of "
        "that is it known that it computes hidden states times weight plus bias. Quantised and custom heads stay as "
        "they are. If it is one that contains a torch.nn.Linear, name that: crossent.lazy_head(model, head='…')."
    )
