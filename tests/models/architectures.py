"""Every architecture of transformers under a lazy head: what is fed to it, and what became of its logits.

python -m tests.models.architectures            writes the tables of docs/guides/lazy-logits.md
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossent import LazyLogits, Materialised, eager_head, lazy_head
from tests.models.tiny import LABELS, built

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "lazy-logits.md"

HEADS = {
    "CAUSAL_LM": "causal language models",
    "MASKED_LM": "masked language models",
    "SEQ_TO_SEQ_CAUSAL_LM": "encoder–decoders",
    "SEQUENCE_CLASSIFICATION": "sequence classifiers",
    "TOKEN_CLASSIFICATION": "token classifiers",
}
"""The tables of transformers, MODEL_FOR_…_MAPPING, that are gone through."""

NOT_BUILT = {
    "dbrx": "its attention asks its configuration for a field, rope_theta, that it does not have (transformers 5.23)",
    "gemma3n": "needs the library timm",
    "gemma4_assistant": "drafts for another model, whose states it must be given",
    "gemma4_unified_assistant": "drafts for another model, whose states it must be given",
    "encoder-decoder": "is put together from two other models",
    "granite_speech": "hears: needs sound, and does not become small",
    "granite_speech_plus": "hears: needs sound, and does not become small",
    "nemo_speechlm": "hears: needs sound",
    "vibevoice_asr": "hears: needs sound, and does not become small",
    "voxtral_realtime": "hears: needs sound",
    "layoutlmv2": "needs the library detectron2",
    "blt": "patches of bytes come from tables of hashes whose sizes do not shrink together",
}
"""Model type → why it cannot be built or run small and offline."""

NOT_LAZY = {
    ("MASKED_LM", "mobilebert"): "multiplies by two matrices put together, and never calls its head",
    ("MASKED_LM", "perceiver"): "multiplies by its embedding itself: there is no layer that could be replaced",
    ("CAUSAL_LM", "musicgen"): "stacks the logits of its four heads",
    ("CAUSAL_LM", "musicgen_melody"): "stacks the logits of its four heads",
    ("SEQ_TO_SEQ_CAUSAL_LM", "fsmt"): "its head is an embedding, and no layer",
    ("SEQUENCE_CLASSIFICATION", "deberta"): "gathers the rows that have a label (a gather along rows)",
    ("SEQUENCE_CLASSIFICATION", "deberta-v2"): "gathers the rows that have a label (a gather along rows)",
    ("SEQUENCE_CLASSIFICATION", "eurobert"): "takes a mean of logits over tokens",
}
"""(table, model type) → why its logits are made, or its head is no module."""


class Case(NamedTuple):
    """One row of one table."""

    table: str
    kind: str
    config_class: type
    model_class: type

    def __str__(self) -> str:
        return f"{self.table.lower()}-{self.kind}"


def cases() -> Iterator[Case]:
    """All rows of all tables."""
    from transformers.models.auto import modeling_auto

    for table in HEADS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING")
        for config_class in mapping.keys():  # noqa: SIM118 - it is no dict
            classes = mapping[config_class]
            for model_class in classes if isinstance(classes, (tuple, list)) else [classes]:
                yield Case(table, config_class.model_type, config_class, model_class)


class Seen(NamedTuple):
    """The losses of the eager and of the lazy head, how far the gradients are apart, and what was made meanwhile."""

    eager: float
    lazy: float
    apart: float
    made: list[Materialised]
    logits: Any


def model_of(case: Case) -> nn.Module:
    """Its tiny model, without dropout."""
    return built(case.config_class, case.model_class, **_besides(case)).train(case.kind == "reformer")


def _besides(case: Case) -> dict[str, Any]:
    return {"is_decoder": True} if case.kind == "reformer" and case.table == "CAUSAL_LM" else {}


def inputs(case: Case) -> dict[str, Tensor]:
    """Tokens and labels, some of them ignored, and whatever else the model wants to be given."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, 12), generator=generator)
    ids[:, -1] = 2  # the end of text, on which some classifiers look
    labels = ids.clone()
    labels[:, :3] = -100
    given = {"input_ids": ids, "labels": labels}
    if case.table == "SEQUENCE_CLASSIFICATION":
        given["labels"] = torch.tensor([0, 3])
    elif case.table == "TOKEN_CLASSIFICATION":
        given["labels"] = torch.where(labels < 0, labels, labels % LABELS)
    if case.kind == "git":
        given["pixel_values"] = torch.randn(2, 3, 16, 16, generator=generator)
    if case.kind in ("bros", "layoutlmv3", "lilt"):
        given["bbox"] = torch.zeros(2, 12, 4, dtype=torch.float if case.kind == "bros" else torch.long)
    if case.kind == "bros":
        given["bbox_first_token_mask"] = torch.ones(2, 12, dtype=torch.bool)
    if case.kind.startswith("musicgen"):  # four streams of tokens
        given["input_ids"] = torch.randint(3, 90, (8, 12), generator=generator)
        given["labels"] = torch.randint(3, 90, (2, 12, 4), generator=generator)
    return given


def gradients(model: nn.Module, given: dict[str, Tensor]) -> tuple[Any, list[Tensor | None]]:
    """What the model says, and the gradient of every parameter."""
    torch.manual_seed(0)  # for models with something random in training
    said = model(**given)
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return said, list(torch.autograd.grad(said.loss, leaves, allow_unused=True))


def distance(a: list[Tensor | None], b: list[Tensor | None]) -> float:
    """The greatest difference of two gradients of a parameter, relative to the norm of all of them."""
    assert [x is None for x in a] == [x is None for x in b]
    whole = sum(float(x.double().norm() ** 2) for x in a if x is not None) ** 0.5
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return max(float((x.double() - y.double()).norm()) / whole for x, y in pairs)


def look(case: Case, spoil: bool = False) -> Seen:
    """Run a model with its own head and with a lazy one; ``spoil`` changes a weight of the head between the two."""
    model, given = model_of(case), inputs(case)
    plain, expected = gradients(model, given)
    made: list[Materialised] = []
    lazy_head(model, on_materialise=made.append)
    if spoil:
        head = next(module for module in model.modules() if hasattr(module, "on_materialise"))
        with torch.no_grad():
            head.weight[4] += 1.0
    said, got = gradients(model, given)
    during = list(made)
    eager_head(model)
    return Seen(float(plain.loss), float(said.loss), distance(expected, got), during, said.logits)


def verdict(case: Case) -> str:
    """In a word: lazy, made (the logits were), plain (the head never saw the model), or why there is nothing to see."""
    if case.kind in NOT_BUILT:
        return "not built"
    try:
        seen = look(case)
    except (TypeError, ValueError) as trouble:
        if "could be its head" in str(trouble) or "and no torch.nn.Linear" in str(trouble):
            return "no head"
        raise
    if seen.made:
        return "made"
    return "lazy" if isinstance(seen.logits, LazyLogits) or seen.apart > 0 else "plain"


def page() -> str:
    """The two tables of the guide."""
    found = [(case, verdict(case)) for case in cases()]
    lines = ["| models | architectures | lazy | not |", "|---|---|---|---|"]
    for table, name in HEADS.items():
        of_table = [word for case, word in found if case.table == table and word != "not built"]
        lazy = of_table.count("lazy")
        lines.append(f"| {name} | {len(of_table)} | {lazy} | {len(of_table) - lazy} |")
    lines += ["", "| not lazy | why |", "|---|---|"]
    lines += [
        f"| {case.model_class.__name__} | {NOT_LAZY[case.table, case.kind]} |"
        for case, word in found
        if word not in ("lazy", "not built")
    ]
    absent = {case.kind for case, word in found if word == "not built"}
    lines += ["", "| not built | why |", "|---|---|", *(f"| {kind} | {NOT_BUILT[kind]} |" for kind in sorted(absent))]
    return "\n".join(lines) + "\n"


BETWEEN = re.compile(r"(<!-- architectures -->\n).*?(<!-- end -->)", re.DOTALL)

if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
    warnings.simplefilter("ignore")
    written = page()
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BETWEEN.sub(lambda between: between[1] + written + between[2], text), encoding="utf-8")
    sys.stdout.write(written)
