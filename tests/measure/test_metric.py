"""The metric of torchmetrics: one process or two, one update or many, any shape, any dtype: the record of all rows."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossent.errors import DataError
from crossent.measure import evaluate
from crossent.record import Record
from tests.parallel.world import good, world_of

torchmetrics = pytest.importorskip("torchmetrics", reason="needs torchmetrics: pip install 'crossent[torchmetrics]'")

from torchmetrics.classification import (  # noqa: E402
    BinaryAccuracy,
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
)  # fmt: skip
from torchmetrics.text import Perplexity  # noqa: E402

from crossent.measure.metric import CrossEntropyMetric, merged  # noqa: E402
from crossent.measure.tally import packing  # noqa: E402

CLASSES = 5


def drawn(n: int, seed: int = 0, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, weights and groups."""
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, classes, generator=g)
    y = torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]
    return z, y, torch.rand(n, generator=g) + 0.1, torch.randint(n // 4, (n,), generator=g)


def values(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in found.items()}


def expected(record: Record) -> dict[str, float]:
    return {name: number.value for name, number in record.items()}


def filled(*parts: tuple[Tensor, ...], **options: Any) -> CrossEntropyMetric:
    metric = CrossEntropyMetric(**options)
    for part in parts:
        metric.update(*part)
    return metric


def test_the_numbers_are_those_of_evaluate():
    z, y, w, group = drawn(600)
    metric = filled(*zip(z.split(70), y.split(70), w.split(70), group.split(70), strict=True), classes=list("abcde"))
    record = evaluate(z, y, form="logits", classes=list("abcde"), weight=w, group=group)
    assert values(metric.compute()) == expected(record)
    assert {value.dtype for value in metric.compute().values()} == {torch.float64}
    whole = metric.record("held out")
    assert (whole.title, whole.facts["groups"]) == ("held out", record.facts["groups"])
    assert whole["cross_entropy"].low == record["cross_entropy"].low
    assert whole.tables["costliest"] == record.tables["costliest"]
    lost = filled((z[1:], y[1:], w[1:], group[1:]), classes=list("abcde"))
    assert values(lost.compute()) != expected(record)  # it would be seen


def test_parts_may_be_left_out():
    z, y, _, _ = drawn(60)
    few, all_ = (values(filled((z, y), parts=parts).compute()) for parts in (False, True))
    assert all_.keys() - few.keys() == {"uncertainty", "discrimination", "miscalibration"}
    assert few == {name: all_[name] for name in few}


FORMS = {
    "logits": lambda z: z,
    "log-probabilities": lambda z: z.log_softmax(1),
    "probabilities": lambda z: z.softmax(1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_numbers_are_worth_what_they_were_rounded_to(form, dtype):
    """The rounded predictions, as float64, give the same; the exact ones differ by their rounding alone."""
    z, y, _, _ = drawn(300)
    exact = FORMS[form](z.double())
    narrow = exact.to(dtype)
    found = values(filled((narrow, y), form=form, parts=False).compute())
    truth = values(filled((exact, y), form=form, parts=False).compute())
    scale = float(exact.abs().max()) if form != "probabilities" else 1.0  # the error of a logit is that of its size
    # a probability's relative error, a logit's error, and the sum that a row is divided by: each at most eps · scale
    assert found["cross_entropy"] == pytest.approx(truth["cross_entropy"], abs=3 * torch.finfo(dtype).eps * scale)
    if form == "logits":
        record = evaluate(narrow.double(), y, form=form)
        assert found["cross_entropy"] == pytest.approx(record["cross_entropy"].value, rel=1e-12)


def test_shapes_and_labels():
    z, y, w, _ = drawn(120)
    whole = values(filled((z, y, w)).compute())
    pixels = z.reshape(6, 4, 5, CLASSES)
    rows = y.reshape(6, 4, 5)
    for metric in (
        filled((pixels.movedim(-1, 1), rows.int(), w.reshape(6, 4, 5))),
        filled((pixels, rows.to(torch.uint8), w.reshape(6, 4, 5)), class_dim=-1),
    ):
        assert values(metric.compute()) == pytest.approx(whole, rel=1e-12)
    masked = y.clone()
    masked[::3] = -100
    kept = torch.arange(120) % 3 > 0
    ids = torch.arange(120)[kept]
    alone = values(filled((z[kept], y[kept], w[kept], None, ids)).compute())
    assert values(filled((z, masked, w)).compute()) == pytest.approx(alone, rel=1e-12)
    assert values(filled((z, torch.where(kept, y, 7), w), ignore_index=7).compute()) == pytest.approx(alone, rel=1e-12)
    shares = 0.9 * torch.nn.functional.one_hot(y, CLASSES) + 0.1 / CLASSES
    soft = values(filled((z, shares, w)).compute())
    assert soft == pytest.approx(expected(evaluate(z, shares, form="logits", truth="soft", weight=w)), rel=1e-12)
    assert soft["kl_divergence"] > 0
    by_document = filled((pixels, rows, None, torch.arange(6)), class_dim=-1).record()
    assert by_document.facts["groups"] == 6


def test_two_classes():
    z, y, _, _ = drawn(200, classes=2)
    odds = z[:, 1] - z[:, 0]
    truth = expected(evaluate(odds, y, form="logits"))
    for metric in (
        filled((odds, y)), filled((odds, y.bool())), filled((z, y)),
        filled((odds.reshape(20, 10), y.reshape(20, 10)), task="binary"),
        filled((odds.double().sigmoid(), y), form="probabilities"),
        filled((torch.nn.functional.logsigmoid(odds.double()), y), form="log-probabilities"),
    ):  # fmt: skip
        # two columns are subtracted in float64 and one was in float32
        assert values(metric.compute()) == pytest.approx(truth, rel=1e-5, abs=1e-6)
    assert values(filled((odds, y)).compute()) == pytest.approx(truth, rel=1e-12, abs=1e-12)
    shares = torch.rand(200, generator=torch.Generator().manual_seed(1))
    soft = filled((odds, shares)).compute()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(odds.double(), shares.double())
    assert soft["cross_entropy"].item() == pytest.approx(entropy.item(), rel=1e-12)


def test_torchmetrics_says_the_same_where_it_can():
    z, y, _, _ = drawn(500)
    found = filled((z, y)).compute()
    accuracy = MulticlassAccuracy(CLASSES, average="micro")
    assert found["accuracy"].item() == pytest.approx(accuracy(z, y).item(), abs=1e-6)
    top = MulticlassAccuracy(CLASSES, average="micro", top_k=3)
    assert found["top_3_accuracy"].item() == pytest.approx(top(z, y).item(), abs=1e-6)
    perplexity = Perplexity()
    assert found["perplexity"].item() == pytest.approx(perplexity(z[None], y[None]).item(), rel=1e-5)  # its float32
    ece = MulticlassCalibrationError(CLASSES, n_bins=15)
    assert found["ece"].item() == pytest.approx(ece(z, y).item(), abs=1e-6)
    z, y, _, _ = drawn(500, classes=2)
    odds = z[:, 1] - z[:, 0]
    found = filled((odds, y)).compute()
    assert found["accuracy"].item() == pytest.approx(BinaryAccuracy()(odds, y).item(), abs=1e-6)
    assert found["ece"].item() == pytest.approx(BinaryCalibrationError(n_bins=15)(odds, y).item(), abs=1e-6)


def halves(rank: int, size: int, unequal: bool) -> tuple[Tensor, ...]:
    z, y, w, group = drawn(900)
    here = torch.arange(900) % size == rank
    if unequal:  # the last rank has none
        here = torch.arange(900) >= 0 if rank == 0 else torch.arange(900) < 0
    return z[here], y[here], w[here], group[here], torch.arange(900)[here]


def on_a_rank(unequal: bool, options: dict[str, Any]) -> tuple[Any, ...]:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = halves(rank, size, unequal)
    metric = CrossEntropyMetric(**options)
    alone = CrossEntropyMetric(sync_on_compute=False, **options)
    named = parts if unequal else parts[:4]  # dealt out as a sampler does, rows find their names themselves
    for part in zip(*(x.split(100) for x in named), strict=True):
        metric.update(*part)
        alone.update(*part)
    first = values(metric.compute())
    record = metric.record()
    metric.update(*(x[:40] for x in parts))  # it goes on with its own rows, not with everybody's
    again = values(metric.compute())
    return first, record, again, values(alone.compute()) if len(parts[0]) else None


@pytest.mark.parametrize("unequal", [False, True])
def test_two_processes_are_one(unequal):
    options = {"classes": list("abcde")}
    answers = good(world_of(2).run(on_a_rank, unequal, options))
    truth = filled(drawn(900), **options)
    for first, record, _, _ in answers:
        assert first == values(truth.compute())
        assert record.tables["costliest"] == truth.record().tables["costliest"]
    assert answers[0][0] == answers[1][0]  # bit by bit
    more = filled(drawn(900), *(tuple(x[:40] for x in halves(r, 2, unequal)) for r in range(2)), **options)
    assert answers[0][2]["cross_entropy"] == more.compute()["cross_entropy"].item()
    if not unequal:
        assert answers[0][3] != pytest.approx(answers[0][0], rel=1e-6)  # a rank alone is another number


def without_rows() -> str:
    metric = CrossEntropyMetric()
    metric.update(torch.zeros(2, 3), torch.full((2,), -100))
    try:
        metric.compute()
    except DataError as trouble:
        return str(trouble)
    return ""


def test_no_rows_on_any_rank():
    assert without_rows() == (sentence := good(world_of(2).run(without_rows))[1])
    assert "there are no rows to measure" in sentence


def test_it_is_a_metric(tmp_path):
    z, y, _, _ = drawn(400)
    truth = values(filled((z, y)).compute())
    metric = CrossEntropyMetric()
    each = [metric(a, b) for a, b in zip(z.split(100), y.split(100), strict=True)]  # forward
    assert values(metric.compute()) == truth
    assert metric.record().tables["costliest"] == filled((z, y)).record().tables["costliest"]
    second = filled((z[100:200], y[100:200], None, None, torch.arange(100, 200)))
    assert values(each[1]) == values(second.compute())
    assert each[0]["cross_entropy"] != each[1]["cross_entropy"]
    whole = CrossEntropyMetric(dist_sync_on_step=True)  # forward in the other way, of two updates
    assert values(whole(z, y)) == truth

    for copied in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        copied.update(z[:50], y[:50])
        assert copied.compute()["cross_entropy"] != metric.compute()["cross_entropy"]
        assert values(metric.compute()) == truth

    left, right = filled((z[:150], y[:150])), filled((z[150:], y[150:]))
    left.merge_state(right)
    assert left.compute()["cross_entropy"].item() == truth["cross_entropy"]

    metric.persistent(True)
    torch.save(metric.state_dict(), tmp_path / "state.pt")
    kept = CrossEntropyMetric()
    kept.persistent(True)
    kept.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    kept._update_count = 1  # torchmetrics warns of a metric that was loaded and not updated
    assert values(kept.compute()) == values(metric.compute())

    metric.reset()
    metric.update(z[:7], y[:7])
    assert metric.record().facts["rows"] == 7
    assert sorted(metric.record().tables["costliest"]["row"]) == list(range(7))
    assert metric.half().to("cpu").record().facts["rows"] == 7


def test_in_a_collection():
    z, y, _, _ = drawn(300)
    accuracy = MulticlassAccuracy(CLASSES, average="micro")
    both = torchmetrics.MetricCollection({"top": accuracy, "all": CrossEntropyMetric()})
    for part in zip(z.split(100), y.split(100), strict=True):
        both.update(*part)
    found = both.compute()
    assert found["cross_entropy"].item() == pytest.approx(filled((z, y)).compute()["cross_entropy"].item(), rel=1e-12)
    assert found["accuracy"].item() == pytest.approx(found["top"].item(), abs=1e-6)
    both.reset()
    assert both(z, y)["cross_entropy"].item() == pytest.approx(found["cross_entropy"].item(), rel=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu():
    z, y, w, _ = drawn(300)
    metric = CrossEntropyMetric().to("cuda")
    metric.update(z.cuda(), y.cuda(), w.cuda())
    found = metric.compute()
    assert {value.device.type for value in found.values()} == {metric.tally.device.type} == {"cuda"}
    assert values(found) == pytest.approx(values(filled((z, y, w)).compute()), rel=1e-12, abs=1e-12)


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((Z.softmax(1), Y), {}, "these logits lie between 0 and 1 and each row adds up to 1: they are probabilities"),
        ((Z, Y), {"form": "probabilities"}, "should add up to 1"),
        ((Z, torch.tensor([0, 1, 3, 0])), {}, r"this is not: '3' \(row 2\)"),
        ((torch.tensor([[0.0, torch.nan]]), Y[:1]), {}, "every logit should be a number, .* row 0"),
        ((Z, Y[:3]), {}, r"targets that are classes should be \(4,\)"),
        ((Z.reshape(2, 2, 3), Y.reshape(2, 2)), {}, "Say class_dim="),
        ((Z, Z.long()), {}, "say task='binary'"),
        ((Z, Z), {}, "row 0 has no label: all of its columns are 0"),
        ((Z, Y.float()), {}, "classes are whole numbers, and these are torch.float32"),
        ((Z.long(), Y), {}, "predictions are logits, floating numbers, and these are torch.int64"),
        ((Z[:, 0], Y[:3]), {"task": "binary"}, "there is one prediction for each target"),
        ((Z, Y, torch.ones(3)), {}, r"the rows have the shape \(4,\) and weight has \(3,\)"),
        ((Z, Y, -torch.ones(4)), {}, "a weight is a number, 0 or more, and row 0 has -1"),
        ((Z, Y), {"classes": ["a", "b"]}, "there are 3 classes in the predictions, and 2 are named"),
        ((Z, Y), {"form": "odds"}, "form should be"),
        ((Z, Y), {"task": "range"}, "task should be"),
    ],
)  # fmt: skip
def test_what_is_no_prediction_is_refused_and_leaves_the_metric_as_it_was(arguments, options, sentence):
    with pytest.raises(DataError, match=sentence):
        filled(arguments, **options)
    metric = filled((Z, Y))
    before = values(metric.compute())
    if not options:
        with pytest.raises(DataError):
            metric.update(*arguments)
        assert values(metric.compute()) == before
    with pytest.raises(DataError, match="cannot take rows of the task"):
        metric.update(torch.zeros(4), Y)
    with pytest.raises(DataError, match="some labels are distributions and some are classes"):
        metric.update(Z, torch.full((4, 3), 1 / 3))
    with pytest.raises(DataError, match="some rows came with groups and some without"):
        metric.update(Z, Y, None, Y)
    metric.update(Z, Y, torch.ones(4))  # a row without a weight weighs 1
    assert metric.record().facts["rows"] == 8


def test_bytes_that_are_no_tally():
    whole = filled((Z, Y)).tally
    for broken in (whole[:-8], torch.cat([whole, whole[:8]]), whole[:5], torch.zeros(64, dtype=torch.uint8)):
        with pytest.raises(DataError, match="are no tally of this version of crossent"):
            packing.unpacked(broken.numpy())
    strange = whole.clone().numpy().tobytes().replace(b"Layout", b"Popen_")
    with pytest.raises(DataError, match="Popen_"):
        packing.unpacked(np.frombuffer(strange, np.uint8))
    assert merged([torch.zeros(0, dtype=torch.uint8)]).numel() == 0
    assert torch.equal(merged([torch.zeros(0, dtype=torch.uint8), whole]), whole)
    stream = io.BytesIO()
    torch.save(whole, stream)
    assert torch.equal(torch.load(io.BytesIO(stream.getvalue()), weights_only=True), whole)


def test_without_torchmetrics_it_says_which_extra():
    program = "import sys; sys.modules['torchmetrics'] = None\nimport crossent.measure\nimport crossent.measure.metric"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=120)
    assert "MissingExtra: CrossEntropyMetric needs the library 'torchmetrics'" in done.stderr
    assert "pip install 'crossent[torchmetrics]'" in done.stderr
    loaded = "import sys, crossent.measure; print({'torchmetrics', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout.strip() == "set()"
