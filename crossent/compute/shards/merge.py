"""What ranks tell each other of a row, merged, and the cotangents of a whole row as they are for some of its columns.

A rank holds columns ``start`` to ``stop`` of every row. It reads them, all ranks exchange the few numbers of their
parts in one gather, and each merges all of them in the order of the ranks: so all have the same statistics, to the bit,
and work out the same losses. Backwards every rank has the same cotangents, and makes the gradient of its own columns
from them and from the statistics of the whole row: the gradient of the logits needs no word from the others.

Of a label's ``gap`` the rank that holds its column knows the value; the others say 0 and hold no weight there, and
``merge`` takes what is held. Backwards a rank that does not hold the target sees nll as lse: -log p_y = lse - z_y, and
z_y is not among its columns. So with s the share of the target's weight that lies here (0 or 1 for a label),

    (a, b) here = (a s, b + a (1 - s))

and ``pull`` gets what it would get from a row whose target has no other columns. What is not linear in the nll of a
soft target needs its columns one by one: then each rank has the nll of its own, sums over them are totals of all ranks
(``rows.OwnColumns``), and A = Σ a and the cotangents b, c, d are totals too, in one collective backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.group import Group, gathered, summed, total
from crossent.compute.stats import Part, field_names, finish, merge, unpack


@dataclass(frozen=True)
class Shard:
    """Which columns this rank holds: ``sizes`` are those of all ranks of the group, in their order; some may be 0."""

    sizes: tuple[int, ...]
    group: Group = None

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return dist.get_rank(self.group)

    @property
    def start(self) -> int:
        """This rank's first column."""
        return self.starts[self.rank]

    @property
    def starts(self) -> tuple[int, ...]:
        """The first column of every rank."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def classes(self) -> int:
        """How many columns a whole row has."""
        return sum(self.sizes)

    def own(self, of_classes: Tensor) -> Tensor:
        """This rank's slice of one number (v,) for each class."""
        return of_classes[self.start : self.start + self.sizes[self.rank]]


# --- forwards: the part of these columns, and the merge of all ----------------------------------------------------


def empty(rows: int, index: Tensor | None, q: Tensor | None, names: tuple[str, ...], like: Tensor) -> tuple:
    """The fields and gaps of no columns."""
    fields = torch.zeros((len(names), rows), dtype=reference.wide(like), device=like.device)
    fields[0], fields[1] = -torch.inf, -1.0
    return fields, fields.new_zeros((rows, 1 if q is not None else 0 if index is None else index.shape[1]))


def as_subset(
    read: tuple[Tensor, Tensor], names: tuple[str, ...], is_nan: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The part of a whole row as that of a subset of its columns: columns that are all -inf add nothing.

    A row of nothing but -inf is NaN, a subset of nothing but -inf is no column that is allowed. A target there is
    infinitely far below the peak of the row, wherever that is. ``is_nan`` says which of the rows (m,) hold a NaN.
    """
    fields, gap = read
    nothing = fields[0] == -torch.inf
    if not bool(nothing.any()):
        return fields, gap
    at = nothing.nonzero().flatten()
    nothing[at] = ~is_nan(at)
    added = {"peak": -torch.inf, "rest": -1.0, "total": 0.0, "count": 0.0, "measure": 0.0, "dot": 0.0}
    # What is left, mass and held, is the target's and not the logits'.
    fields = torch.stack(
        [
            torch.where(nothing, added[name], each) if name in added else each
            for name, each in zip(names, fields, strict=True)
        ]
    )
    far = torch.full_like(fields[0], torch.inf)
    if "held" in names:
        far = torch.where(fields[names.index("held")] == 0, 0.0, far)
    return fields, torch.where(nothing.unsqueeze(-1), far.unsqueeze(-1), gap)


def here(index: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Where in these columns the targets are, and whether they are there at all."""
    inside = (index >= start) & (index < start + size)
    return torch.where(inside, index - start, 0), inside


def own_here(index: Tensor | None, shard: Shard) -> Tensor | None:
    """Where in this rank's columns the targets are."""
    return None if index is None else here(index, shard.start, shard.sizes[shard.rank])[0]


def merged(
    fields: Tensor, gap: Tensor, index: Tensor | None, what: dict[str, bool], shard: Shard, one_by_one: bool
) -> tuple[Tensor, ...]:
    """(fields, nll, lse, uniform?, entropy?) of whole rows from the fields and gaps of these columns."""
    everyone = gathered(fields if one_by_one else torch.cat([fields, gap.T]), shard.group)

    def part_of(rank: int) -> Part:
        part = unpack(everyone[rank, : len(fields)], everyone[rank, len(fields) :].T, **what)
        if index is None:
            return part
        inside = here(index, shard.starts[rank], shard.sizes[rank])[1]
        held = {"held": inside.to(part.gap.dtype), "gap": torch.where(inside, part.gap, 0.0)}
        return Part(**{**vars(part), **held})

    part = reduce(merge, (part_of(rank) for rank in range(len(shard.sizes))))
    # A row of nothing but -inf has no probabilities, as in one piece.
    part = Part(**{**vars(part), "rest": torch.where(part.peak == -torch.inf, torch.nan, part.rest)})
    nll, *others = finish(part)
    if one_by_one:
        peak = fields[0].unsqueeze(-1)
        below = torch.where(peak == -torch.inf, 0.0, part.peak.unsqueeze(-1) - peak)
        nll = gap + below + torch.log1p(part.rest).unsqueeze(-1)
    whole = {**vars(part), "held": part.held[:, 0] if what["dense"] else None}
    stacked = torch.stack([whole[name] for name in field_names(**what)])
    return stacked, nll, *(stat for stat in others if stat is not None)


def order_of(z: Tensor, index: Tensor | None, shard: Shard) -> tuple[Tensor, Tensor]:
    """The first of the greatest columns of whole rows, and how many are above the label's; z (r, own) are these."""
    assert index is not None
    size = shard.sizes[shard.rank]
    at, inside = here(index[:, :1], shard.start, size)
    if size:
        peak, first = z.max(-1)
        label = summed(torch.where(inside, z.gather(-1, at), 0.0), shard.group)  # one rank has it: nothing is added up
        above = (z > label).sum(-1)
    else:
        peak, first, above = z.new_full(z.shape[:1], -torch.inf), at[:, 0], torch.zeros_like(at[:, 0])
        summed(z.new_zeros(inside.shape), shard.group)
    peaks, places = gathered(peak, shard.group), gathered(first + shard.start, shard.group)
    best, place = peaks[0], places[0]
    for other, there in zip(peaks[1:], places[1:], strict=True):
        leads = (other > best) | (other.isnan() & ~best.isnan())  # of two that are equal the first stays
        best, place = torch.where(leads, other, best), torch.where(leads, there, place)
    return place, summed(above, shard.group)


def moved(
    ctx: Any,
    z: Tensor,
    t: Tensor,
    index: Tensor | None,
    q: Tensor | None,
    weight: Tensor | None,
    fields: Tensor,
    lse: Tensor,
    entropy: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """How (fields, nll, lse, uniform?, entropy?) of whole rows move when these columns z (r, own) move by t."""
    group = ctx.shard.group
    known = dict(zip(field_names(dense=q is not None, uniform=ctx.uniform, entropy=ctx.entropy), fields, strict=True))
    allowed = z != -torch.inf
    t = torch.where(allowed, t.to(lse.dtype), 0.0)
    nll = torch.where(allowed, lse.unsqueeze(-1) - z, 0.0)
    p = torch.where(allowed, torch.exp(-nll), 0.0)
    of_lse = total((p * t).sum(-1), group)
    if q is not None:
        own = reference._soft_weights(reference.by_row(q), weight, t.dtype)
        held = torch.where(known["held"] == 0, 1.0, known["held"])
        of_hit = (total((own * t).sum(-1), group) / held).unsqueeze(-1)
    elif index is None:
        of_hit = t
    else:
        at, inside = here(index, ctx.shard.start, z.shape[1])
        mine = torch.where(inside, t.gather(-1, at), 0.0) if z.shape[1] else torch.zeros_like(at, dtype=t.dtype)
        of_hit = total(mine, group)
    found: list[Tensor | None] = [None, of_lse.unsqueeze(-1) - of_hit, of_lse]
    if ctx.uniform:
        u = reference._column_weights(allowed, weight, t.dtype)
        found.append((known["measure"] * of_lse - total((u * t).sum(-1), group)) / known["count"])
    if entropy is not None:
        found.append(total((p * (nll - entropy.unsqueeze(-1)) * t).sum(-1), group))
    return tuple(found)


# --- backwards: the gradient of these columns ---------------------------------------------------------------------


def cotangents_of(
    ctx: Any, given: tuple[Tensor | None, ...], index: Tensor | None, q: Tensor | None, fields: Tensor, own: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(a, b, c, d), zeros where nobody sent one; None is what was not read."""
    a, b, *rest = given
    each = iter(rest)
    c, d = (next(each) if read else None for read in (ctx.uniform, ctx.entropy))
    none = fields.new_zeros(fields.shape[1])
    if a is None:
        a = none.new_zeros(fields.shape[1], 1 if q is not None else own if index is None else index.shape[1])
    c = none if ctx.uniform and c is None else c
    d = none if ctx.entropy and d is None else d
    return a, none if b is None else b, c, d


def share_of(
    ctx: Any, a: Tensor, index: Tensor | None, q: Tensor | None, weight: Tensor | None, fields: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(share of each target that lies in these columns, the weight (r,) of a soft target that does)."""
    if index is not None:
        return here(index, ctx.shard.start, ctx.shard.sizes[ctx.shard.rank])[1].to(a.dtype), None
    if q is None:
        return torch.ones_like(a), None
    own = reference._soft_weights(reference.by_row(q), weight, a.dtype).sum(-1)
    whole = fields[field_names(dense=True, uniform=False, entropy=False).index("held")]
    return (own / torch.where(whole == 0, 1.0, whole)).unsqueeze(-1), own


def localised(
    ctx: Any,
    index: Tensor | None,
    q: Tensor | None,
    weight: Tensor | None,
    fields: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    d: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """(columns of the targets, fields, a, b, c, d) with which ``pull`` gives the gradient of these columns."""
    share, held = share_of(ctx, a, index, q, weight, fields)
    if ctx.one_by_one:
        own = a.sum(-1)
        everyone = iter(summed(torch.stack([x for x in (own, b, c, d) if x is not None]), ctx.shard.group))
        others = next(everyone) - own
        b = next(everyone) + others
        c, d = (None if x is None else next(everyone) for x in (c, d))
    else:
        a, b = a * share, b + (a * (1 - share)).sum(-1)
    if held is not None:  # to ``pull`` the target is what lies here
        names = field_names(dense=True, uniform=ctx.uniform, entropy=ctx.entropy)
        fields = torch.stack([held if name == "held" else fields[at] for at, name in enumerate(names)])
    return own_here(index, ctx.shard), fields, a, b, c, d
