"""Functions that a tensor of its own kind may answer itself, as it may those of torch: by ``__torch_function__``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch.overrides import handle_torch_function, has_torch_function_unary

P = ParamSpec("P")
R = TypeVar("R")


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let the first argument answer, if it can; it can call ``function`` itself on something plainer."""

    @wraps(function)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0] if args else kwargs.get("input")
        if has_torch_function_unary(first):
            return handle_torch_function(asked, (first,), *args, **kwargs)
        return function(*args, **kwargs)

    return asked
