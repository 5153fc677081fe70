"""The networks: from prepared features, or images, to logits.

tabular        tables and plain arrays: several perceptrons side by side
trees          tables and plain arrays: boosted trees that scikit-learn has grown
residual       images: a small residual network
text           texts: a transformer that the user has
several        networks that were trained one after another, or of several kinds, as one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from crossent.errors import DataError
from crossent.minimise.networks.residual import Residual
from crossent.minimise.networks.several import Average, Even, Mixture, Several
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.networks.trees import Trees

KINDS: dict[str, type[nn.Module]] = {
    "tabular": Tabular, "trees": Trees, "residual": Residual, "average": Average, "even": Even,
}  # fmt: skip
"""Networks that are made again from their settings. A model of texts has a folder of its own."""


def settings_of(network: nn.Module) -> dict[str, Any]:
    """What ``rebuilt`` needs to make a network that the weights of this one fit, as plain data."""
    if isinstance(network, Several):
        return {"kind": "several", "networks": [settings_of(each) for each in network.networks]}
    if isinstance(network, Mixture):
        return {"kind": "mixture", "networks": [settings_of(each) for each in network.networks]}
    for kind, made in KINDS.items():
        if isinstance(network, made):
            return {"kind": kind, **network.settings}  # type: ignore[dict-item]
    return {"kind": "own"}


def rebuilt(about: dict[str, Any], own: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A network without its weights; ``own`` makes one that is the user's."""
    settings = dict(about)
    kind = settings.pop("kind")
    if kind == "several":
        return Several([rebuilt(each, own) for each in settings["networks"]])
    if kind == "mixture":  # shares, temperatures and levels are among the weights
        parts = [rebuilt(each, own) for each in settings["networks"]]
        return Mixture(parts, [1.0] * len(parts), [1.0] * len(parts))
    if kind in KINDS:
        return KINDS[kind](**settings)
    if own is None:
        raise DataError(
            "the network in this folder is the user's own, and a folder of weights cannot say how it is made: pass the "
            "factory it was made by, load(folder, model=factory), or --model package.module:factory."
        )
    return own()
