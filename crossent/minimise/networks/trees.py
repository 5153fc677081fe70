"""Boosted trees as a network: what scikit-learn has grown, as tensors that are saved and exported like any weights.

A tree is walked from its root. At a node j the number x_f of one feature f(j) decides: up to a threshold t(j) the way
goes to the left, beyond it to the right, and a missing number goes where more of the loss was won by it,

    j  ←  l(j) + [x_f(j) > t(j)]          or, if x_f(j) is missing,          j  ←  l(j) + m(j),                     (1)

for the right child is kept beside the left one. A leaf is its own left child, and nothing is greater than its
threshold, ∞: whoever is there stays. So all rows take as many steps as the deepest tree has, through all trees at
once, and need no question whether they have arrived. A logit is what all leaves of its trees hold, and one number more,

    z_k  =  b_k + Σ_r v(j_rk)                                                                                       (2)

over the rounds r of boosting; of two classes the second alone has trees, and z_0 = 0 (Friedman 2001, algorithm 6).

Thresholds of scikit-learn are float64 and lie between two numbers that were seen; the features here are float32. x > t
says the same of every float32 x if t is rounded down to float32. So no row takes another way than in scikit-learn, and
the logits differ by the rounding of float32, in which the leaves are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

AT_ONCE = 2**21
"""Places in trees that are held at once: rows, times trees."""


class Trees(nn.Module):
    """Features (n, d), or (members, n, d) where members read rows of their own → logits (members, n, columns).

    A member is an ensemble of boosted trees: ``rounds`` of ``trees`` each, one for each logit, or one for both of two.
    NaN is a missing number. ``nodes`` are those of all trees together, and ``depth`` the steps to the deepest leaf.
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    missing: Tensor
    left: Tensor
    value: Tensor
    start: Tensor

    def __init__(self, nodes: int, members: int, rounds: int, trees: int, columns: int, depth: int) -> None:
        super().__init__()
        self.columns, self.depth = columns, depth
        self.register_buffer("root", torch.zeros(members, rounds * trees, dtype=torch.long))
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.long))
        self.register_buffer("threshold", torch.full((nodes,), torch.inf))
        self.register_buffer("missing", torch.zeros(nodes, dtype=torch.bool))
        self.register_buffer("left", torch.arange(nodes))
        self.register_buffer("value", torch.zeros(nodes))
        self.register_buffer("start", torch.zeros(members, trees, dtype=torch.float64))

    @classmethod
    def of(cls, grown: Sequence[Any], columns: int) -> Trees:
        """What scikit-learn's HistGradientBoostingClassifiers have grown from numbers (not categories), side by side.

        ``columns`` are the logits wanted: one for each class; of two classes also 1, the second's logit alone.
        """
        members = [[tree for each in model._predictors for tree in each] for model in grown]
        start = np.concatenate([model._baseline_prediction for model in grown])
        # Node 0 is a leaf that says 0: there ends a member that has fewer trees than others.
        tables = [_side_by_side(tree.nodes) for member in members for tree in member]
        tables.insert(0, np.zeros(1, dtype=tables[0].dtype))
        tables[0]["is_leaf"] = 1
        first = np.cumsum([0, *map(len, tables)])
        nodes = np.concatenate(tables)
        most = max(map(len, members))
        network = cls(
            len(nodes), len(members), most // start.shape[1], start.shape[1], columns, int(nodes["depth"].max())
        )
        rest = iter(first[1:].tolist())
        root = [[next(rest) for _ in member] + [0] * (most - len(member)) for member in members]
        network.root.copy_(torch.tensor(root, dtype=torch.long).view_as(network.root))
        leaf = nodes["is_leaf"].astype(bool)
        network.feature.copy_(torch.from_numpy(np.where(leaf, 0, nodes["feature_idx"])))
        network.threshold.copy_(torch.from_numpy(np.where(leaf, np.inf, _down(nodes["num_threshold"]))))
        network.missing.copy_(torch.from_numpy(~leaf & (nodes["missing_go_to_left"] == 0)))
        network.left.copy_(torch.from_numpy(nodes["left"] + np.repeat(first[:-1], np.diff(first))))
        network.value.copy_(torch.from_numpy(np.where(leaf, nodes["value"], 0.0)))
        network.start.copy_(torch.from_numpy(start))
        return network

    @property
    def settings(self) -> dict[str, int]:
        """What ``Trees(**settings)`` takes to make a network that these weights fit."""
        members, trees = self.start.shape
        return {
            "nodes": len(self.left),
            "members": members,
            "rounds": self.root.shape[1] // trees,
            "trees": trees,
            "columns": self.columns,
            "depth": self.depth,
        }

    @property
    def members(self) -> int:
        """How many ensembles stand side by side."""
        return self.start.shape[0]

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together where no gradient is wanted."""
        return max(1, AT_ONCE // max(1, self.root.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """The members' logits (members, n, columns)."""
        rows = x if x.dim() == 3 else x.unsqueeze(0).expand(self.members, -1, -1)
        place = self.root.unsqueeze(1).expand(-1, rows.shape[1], -1)
        for _ in range(self.depth):  # (1)
            number = rows.gather(-1, self.feature[place])
            right = (number > self.threshold[place]) | (number.isnan() & self.missing[place])
            place = self.left[place] + right.long()
        trees = self.start.shape[1]
        z = self.value[place].double().unflatten(-1, (self.root.shape[1] // trees, trees)).sum(-2)  # (2)
        z = (z + self.start.unsqueeze(1)).to(self.value.dtype)
        return z if trees == self.columns else torch.cat((torch.zeros_like(z), z), -1)


def _side_by_side(nodes: NDArray[Any]) -> NDArray[Any]:
    """The nodes of a tree in an order in which every right child follows the left one; a leaf is its own left child."""
    order, left = [0], []
    inner, lefts, rights = ~nodes["is_leaf"].astype(bool), nodes["left"].tolist(), nodes["right"].tolist()
    for place, node in enumerate(order):  # which grows on the way
        left.append(len(order) if inner[node] else place)
        if inner[node]:
            order += (lefts[node], rights[node])
    found = nodes[order]
    found["left"] = left
    return found


def _down(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 numbers that are not above these."""
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
