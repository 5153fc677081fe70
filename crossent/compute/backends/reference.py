"""The reference backend: plain torch, in float64, rounded once at the end. The others are held to it.

``part`` reads the columns once; ``pull`` turns the cotangents (a, b, c, d) of (nll, lse, uniform, entropy) into
the gradient of the logits. With p = softmax(z), A = Σ_k a_k and α_j = the sum of the a_k whose target is column j
(of a soft target: a times the share of its weight that column j has):

    dz_j = (A - α_j) p_j + α_j (p_j - 1)              against the targets; p_j - 1 is expm1(-nll_j), never p_j - 1
         + b p_j                                      lse
         + c (measure p_j - u_j) / count              uniform
         + d p_j (nll_j - entropy)                    entropy

float64 is what makes float32 exact: the difference z_j - peak and the sum of 256k exponentials are then right
far below a float32 ulp. A device without float64 (Apple's GPU) works in float32 and keeps fewer digits.

Rows are worked through in blocks that stay in a processor's cache: the dozen float64 copies that plain torch makes on
the way would otherwise each be fresh pages of memory, which cost more than the arithmetic (six times, LOG.md).

What every backend takes: logits z (n, v, l), whose rows (i, ·, j) are counted as r = n·l rows in that order; ``live``
(r,) bool or None for all; the target as ``index`` (r, k), or as ``q`` (n, v, l) for a soft target that is summed up on
the way, or neither if every column is a target of its own; ``column_weight`` (v,). What it gives: the fields of
``stats.field_names`` stacked (f, r) and ``gap`` (r, k), both in the wide dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.compute.stats import field_names

BLOCK = 2**18


def wide(z: Tensor) -> torch.dtype:
    """The dtype in which rows are worked out: float64 wherever the device has it."""
    return torch.float32 if z.device.type == "mps" else torch.float64


def by_row(z: Tensor) -> Tensor:
    """Rows (r, v) of (n, v, l); a copy unless l is 1."""
    return z.movedim(1, -1).reshape(z.shape[0] * z.shape[2:].numel(), z.shape[1])


def _by_column(rows: Tensor, shape: torch.Size) -> Tensor:
    return rows.reshape(shape[0], shape[2], shape[1]).movedim(-1, 1)


def part(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read the rows of z once. A row that is not live is not read: zeros stand in for it."""
    soft = None if q is None else by_row(q)
    blocks = [
        _part(_read(rows, alive), at, share, column_weight, uniform, entropy, order)
        for rows, alive, at, share in _blocks(by_row(z), live, index, soft)
    ]
    fields, gaps = zip(*blocks, strict=True)
    return torch.cat(fields, -1), torch.cat(gaps)


def _part(
    z: Tensor,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool,
) -> tuple[Tensor, Tensor]:
    peak, first = z.max(-1)
    below = z - peak.unsqueeze(-1)
    power = torch.exp(below)
    allowed = z != -torch.inf
    bounded = torch.where(allowed, below, 0.0)  # 0 · -inf = 0 in the sums that multiply by it
    fields = {
        "peak": peak,
        "rest": power.scatter(-1, first.unsqueeze(-1), 0.0).sum(-1) + (peak - peak),  # NaN rows stay NaN
    }
    if q is not None:
        weight = _soft_weights(q, column_weight, z.dtype)
        there = weight != 0
        held = weight.sum(-1)
        missing = torch.where(there, -below, 0.0)
        mean = torch.where(there, weight * missing, 0.0).sum(-1) / torch.where(held == 0, 1.0, held)
        # One class alone is its own mean, to the bit: a one-hot target is its label.
        gap = torch.where(there.sum(-1) == 1, missing.sum(-1), mean).unsqueeze(-1)
        fields |= {"mass": q.to(z.dtype).sum(-1), "held": held}
    else:
        gap = -below if index is None else -below.gather(-1, index)
    if uniform:
        u = _column_weights(allowed, column_weight, z.dtype)
        fields |= {"total": (u * bounded).sum(-1), "count": allowed.sum(-1).to(z.dtype), "measure": u.sum(-1)}
    if entropy:
        fields["dot"] = (power * bounded).sum(-1)
    if order:
        above = torch.zeros_like(first) if index is None else (z > z.gather(-1, index[:, :1])).sum(-1)
        fields |= {"first": first.to(z.dtype), "above": above.to(z.dtype)}
    names = field_names(dense=q is not None, uniform=uniform, entropy=entropy, order=order)
    return torch.stack([fields[name] for name in names]), gap


def pull(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    fields: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    d: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient of z (n, v, l) from the cotangents a (r, k) and b, c, d (r,); in z's dtype, rounded once.

    ``fields`` are those of ``part``. c needs the uniform ones to be there, d the one of the entropy. Rows that are not
    live get exactly +0, by selection. ``out`` is where to write it, which may be z itself.
    """
    dz = torch.empty_like(z) if out is None else out
    soft = None if q is None else by_row(q)
    names = field_names(dense=q is not None, uniform=c is not None, entropy=d is not None)
    blocks = [
        _pull(rows, alive, at, share, column_weight, dict(zip(names, known.unbind(-1), strict=False)), *cotangents)
        for rows, alive, at, share, known, *cotangents in _blocks(by_row(z), live, index, soft, fields.T, a, b, c, d)
    ]
    dz.copy_(_by_column(torch.cat(blocks), z.shape))
    return dz


def _pull(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    known: dict[str, Tensor],
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    d: Tensor | None,
) -> Tensor:
    dtype = z.dtype
    z = _read(z, live)
    peak, rest = known["peak"].unsqueeze(-1), known["rest"].unsqueeze(-1)
    p = torch.exp(z - peak) / (1 + rest)
    nll = (peak - z) + torch.log1p(rest)
    alpha = _of_each_column(a, index, q, column_weight, known.get("held"), z)
    # expm1(-∞) is the right -1; an alpha of 0 silences nothing else, since -nll is never +∞.
    dz = (a.sum(-1, keepdim=True) - alpha) * p + alpha * torch.expm1(-nll)
    if b is not None:
        dz = dz + b.unsqueeze(-1) * p
    if c is not None:
        u = _column_weights(z != -torch.inf, column_weight, z.dtype)
        dz = dz + (c / known["count"]).unsqueeze(-1) * (known["measure"].unsqueeze(-1) * p - u)
    if d is not None:
        entropy = torch.log1p(rest) - known["dot"].unsqueeze(-1) / (1 + rest)
        dz = dz + d.unsqueeze(-1) * p * (torch.where(p == 0, 0.0, nll) - entropy)
    return (dz if live is None else torch.where(live.unsqueeze(-1), dz, 0.0)).to(dtype)


def differentiable_pull(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    d: Tensor | None,
) -> Tensor:
    """The same gradient from torch's softmax, for autograd to go through again: right, if not to the last digit."""
    shape, dtype = z.shape, z.dtype
    z = _read(by_row(z), live)
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    allowed = z != -torch.inf
    held = None if q is None else _soft_weights(by_row(q), column_weight, z.dtype).sum(-1)
    alpha = _of_each_column(a, index, None if q is None else by_row(q), column_weight, held, z)
    dz = a.sum(-1, keepdim=True) * p - alpha
    if b is not None:
        dz = dz + b.unsqueeze(-1) * p
    if c is not None:
        u = _column_weights(allowed, column_weight, z.dtype)
        dz = dz + (c / allowed.sum(-1)).unsqueeze(-1) * (u.sum(-1, keepdim=True) * p - u)
    if d is not None:
        nll = -torch.where(allowed, log_p, 0.0)
        dz = dz + d.unsqueeze(-1) * p * (nll - (p * nll).sum(-1, keepdim=True))
    if live is not None:
        dz = torch.where(live.unsqueeze(-1), dz, 0.0)
    return _by_column(dz, shape).to(dtype)


def push(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    tangent: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """How (nll, lse, uniform, entropy) move when z moves by ``tangent``: the forward derivative, in plain torch."""
    z, t = _read(by_row(z), live), _read(by_row(tangent), live)
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    allowed = z != -torch.inf
    lse = (p * t).sum(-1)
    if q is not None:
        weight = _soft_weights(by_row(q), column_weight, z.dtype)
        held = weight.sum(-1, keepdim=True)
        hit = (weight * t).sum(-1, keepdim=True) / torch.where(held == 0, 1.0, held)
    else:
        hit = t if index is None else t.gather(-1, index)
    moved_uniform = moved_entropy = None
    if uniform:
        u = _column_weights(allowed, column_weight, z.dtype)
        moved_uniform = (u.sum(-1) * lse - (u * t).sum(-1)) / allowed.sum(-1)
    if entropy:
        nll = -torch.where(allowed, log_p, 0.0)
        moved_entropy = (p * (nll - (p * nll).sum(-1, keepdim=True)) * t).sum(-1)
    return lse.unsqueeze(-1) - hit, lse, moved_uniform, moved_entropy


ELEMENTS = 512


def elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
    """The cost (n,) of binary logits z (n,) against the share (n,) that is class 1, moved towards ½ by ``smoothing``.

    c t softplus(-z) + (1 - t) softplus(z), where a weight of 0 silences even an infinite cost; ``pos_weight`` is c, of
    any length that divides n: it repeats. ``summed`` asks for the sums of blocks of ELEMENTS: they need not all exist.
    """
    z, one, zero = _shares(z, share, pos_weight, smoothing)
    tail = torch.log1p(torch.exp(-z.abs()))
    below, above = torch.where(one == 0, 0.0, (-z).clamp(min=0)), torch.where(zero == 0, 0.0, z.clamp(min=0))
    cost = (one + zero) * tail + one * below + zero * above
    return in_blocks(cost) if summed else cost


def in_blocks(x: Tensor) -> Tensor:
    """The sums of blocks of ELEMENTS of x (n,)."""
    return torch.nn.functional.pad(x, (0, -x.shape[0] % ELEMENTS)).reshape(-1, ELEMENTS).sum(-1)


def pull_elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: Tensor) -> Tensor:
    """The gradient of z (n,) from the cotangents a: a ((1 - t) p - c t (1 - p)), both tails exact.

    a has one number for each element, or one for each block of ELEMENTS.

    Plain torch, so that autograd can go through it again.
    """
    dtype = z.dtype
    z, one, zero = _shares(z, share, pos_weight, smoothing)
    if a.shape != z.shape:
        a = a.unsqueeze(-1).expand(-1, ELEMENTS).reshape(-1)[: z.shape[0]]
    return (a * (zero * torch.sigmoid(z) - one * torch.sigmoid(-z))).to(dtype)


def _shares(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    t = (1 - smoothing) * share.to(wide(z)) + 0.5 * smoothing
    if pos_weight is None:
        return z.to(wide(z)), t, 1 - t
    return z.to(wide(z)), (t.reshape(-1, pos_weight.shape[0]) * pos_weight.to(t)).reshape(-1), 1 - t


def _read(z: Tensor, live: Tensor | None) -> Tensor:
    return (z if live is None else torch.where(live.unsqueeze(-1), z, 0.0)).to(wide(z))


def _blocks(z: Tensor, *tensors: Tensor | None) -> list[tuple]:
    """The tensors cut into the same blocks of rows, about BLOCK logits each."""
    rows = max(1, BLOCK // max(1, z.shape[-1]))
    if z.shape[0] <= rows:
        return [(z, *tensors)]
    starts = range(0, z.shape[0], rows)
    return [tuple(None if t is None else t[i : i + rows] for t in (z, *tensors)) for i in starts]


def _soft_weights(q: Tensor, column_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    return q.to(dtype) if column_weight is None else q.to(dtype) * column_weight.to(dtype)


def _column_weights(allowed: Tensor, column_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """u: 0 where a column is not allowed, else 1 or its class weight."""
    return allowed.to(dtype) if column_weight is None else allowed * column_weight.to(dtype)


def _of_each_column(
    a: Tensor, index: Tensor | None, q: Tensor | None, column_weight: Tensor | None, held: Tensor | None, z: Tensor
) -> Tensor:
    """α: the cotangents of the targets, added up at the columns (r, v) they belong to."""
    if q is not None and held is not None:
        share = _soft_weights(q, column_weight, z.dtype) / torch.where(held == 0, 1.0, held).unsqueeze(-1)
        return a * share
    return a if index is None else torch.zeros_like(z).scatter_add(-1, index, a.to(z.dtype))
