"""The callbacks: what trainers log is what ``evaluate`` says of the same logits, over epochs, loaders and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crossent.errors import DataError
from crossent.measure import evaluate
from crossent.minimise.callbacks import LOGGED, logged
from tests.minimise.rank import validated
from tests.parallel.world import good, world_of

EXACT = {"rel": 1e-12, "abs": 1e-12}
IN_FLOAT32 = {"rel": 1e-6, "abs": 1e-6}
"""Lightning keeps what is logged in float32; so do the models, whose logits of one row depend on its batch."""

ROOT = Path(__file__).resolve().parents[2]
G = torch.Generator().manual_seed(3)
X = torch.randn(180, 4, generator=G)
Y = (X @ torch.randn(4, 3, generator=G) + torch.randn(180, 3, generator=G)).argmax(1)
PARTS = ("cross_entropy", "uncertainty", "discrimination", "miscalibration", "information_gained", "skill")


def parts_of(logits: Tensor, labels: Tensor, **options: Any) -> dict[str, float]:
    found = logged(evaluate(logits, labels, form="logits", **options))
    assert tuple(found) == PARTS
    return found


def test_importing_crossent_imports_no_trainer() -> None:
    program = (
        "import sys, crossent; crossent.fit, crossent.evaluate; import crossent.minimise.callbacks, "
        "crossent.minimise.export, crossent.minimise.networks.text; "
        "print({'lightning', 'pytorch_lightning', 'transformers', 'torchmetrics', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Lightning


lightning = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'crossent[models]'")
from crossent.minimise.callbacks.lightning import DecompositionCallback as ForLightning  # noqa: E402


class Line(lightning.LightningModule):
    """A linear model; ``returns`` names what its validation step gives back."""

    def __init__(self, returns: tuple[str, ...] = ("logits", "labels")) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.returns = torch.nn.Linear(4, 3), returns

    def training_step(self, batch: Any, index: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.line(batch["x"]), batch["labels"])

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        told = {"logits": self.line(batch["x"]), "labels": batch["labels"]}
        return {name: told[name] for name in self.returns} or None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def loader(start: int, stop: int) -> torch.utils.data.DataLoader:
    rows = [{"x": X[i], "labels": Y[i]} for i in range(start, stop)]
    return torch.utils.data.DataLoader(rows, batch_size=17)


def trainer_of(folder: Path, *callbacks: Any, epochs: int = 2) -> Any:
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


quietly = pytest.mark.filterwarnings("ignore")  # both trainers warn of workers, loggers and deprecations of their own


@quietly
def test_lightning_logs_what_evaluate_says(tmp_path: Path) -> None:
    class Kept(lightning.Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    module, parts, kept = Line(), ForLightning(), Kept()
    stop = lightning.pytorch.callbacks.EarlyStopping("val_discrimination", mode="max", patience=9)
    trainer_of(tmp_path, kept, stop, parts).fit(module, loader(0, 90), loader(90, 180))
    truth = parts_of(module.line(X[90:]).detach(), Y[90:])
    assert logged(parts.records[0]) == pytest.approx(truth, **IN_FLOAT32)
    assert parts.records[0].facts["rows"] == 90  # of the last validation alone, and none of the sanity check
    assert parts.records[0]["miscalibration"].low is not None
    first, last = ({name.removeprefix("val_"): value for name, value in seen.items()} for seen in kept.seen)
    assert last == pytest.approx(truth, **IN_FLOAT32)
    assert first != pytest.approx(truth, rel=1e-3)  # an epoch before it was another model
    assert parts_of(module.line(X[91:]).detach(), Y[91:]) != pytest.approx(truth, **IN_FLOAT32)  # a row less is seen


@quietly
@pytest.mark.parametrize("returns", [("logits",), ("logits", "labels"), ()], ids=str)
def test_lightning_finds_rows_by_key_in_the_batch_or_by_a_function(tmp_path: Path, returns: tuple[str, ...]) -> None:
    module = Line(returns)
    where = {} if returns else {"logits": lambda outputs, batch: module.line(batch["x"])}
    parts = ForLightning(**where, prefix="held_out/", classes=list("abc"))
    trainer = trainer_of(tmp_path, parts)
    trainer.validate(module, [loader(0, 50), loader(50, 180)], verbose=False)
    for place, rows in ((0, slice(0, 50)), (1, slice(50, 180))):
        truth = parts_of(module.line(X[rows]).detach(), Y[rows], classes=list("abc"))
        assert logged(parts.records[place]) == pytest.approx(truth, **IN_FLOAT32)
        for name, value in truth.items():
            assert float(trainer.callback_metrics[f"held_out/{name}/dataloader_idx_{place}"]) == pytest.approx(
                value, **IN_FLOAT32
            )
    assert parts.records[0]["cross_entropy"].value != pytest.approx(parts.records[1]["cross_entropy"].value, rel=1e-3)
    assert parts.records[0].facts["classes"] == list("abc")


@quietly
def test_lightning_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there are no logits 'logits': validation_step gave back .*NoneType.* is a dict"
    ):
        trainer_of(tmp_path, ForLightning()).validate(Line(()), loader(0, 20), verbose=False)
    with pytest.raises(DataError, match="no labels 'y': validation_step gave back a dictionary of logits, labels, and"):
        trainer_of(tmp_path, ForLightning(labels="y")).validate(Line(), loader(0, 20), verbose=False)
    with pytest.raises(DataError, match="form should be"):
        ForLightning(form="scores")


def test_lightning_on_two_ranks_is_one_process() -> None:
    # Numbers without folds: those are drawn by the names of rows, which differ, and move only within their intervals.
    same = ("cross_entropy", "uncertainty", "information_gained", "skill")
    answers = good(world_of(2).run(validated, X[:, :3], Y, [[0, 20, 40, 60, 80], [100, 120]]))
    truth = parts_of(X[:140, :3], Y[:140])
    for told, record in answers:
        assert {name: told[f"val_{name}"] for name in same} == pytest.approx({n: truth[n] for n in same}, **EXACT)
        assert record["miscalibration"].low < truth["miscalibration"] < record["miscalibration"].high
        assert record.facts["rows"] == 140
    assert answers[0][0] == answers[1][0]
    alone = parts_of(X[100:140, :3], Y[100:140])
    assert alone["cross_entropy"] != pytest.approx(truth["cross_entropy"], rel=1e-3)


# transformers


transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'crossent[models]'"
)
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'crossent[models]'")
from crossent.minimise.callbacks.transformers import DecompositionCallback as ForTrainer  # noqa: E402

SMALL = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
TOKENS = torch.randint(3, 12, (30, 9), generator=G)
LABELS = torch.where(torch.arange(9) < torch.randint(0, 5, (30, 1), generator=G), -100, TOKENS)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()


def bert(kind: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SMALL, **options))


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def hf_trainer(folder: Path, model: torch.nn.Module, labels: Tensor, arguments: dict[str, Any], **options: Any) -> Any:
    data = [{"input_ids": row, "labels": label} for row, label in zip(TOKENS, labels, strict=True)]
    chosen = {"per_device_eval_batch_size": 7, "learning_rate": 1e-2, "num_train_epochs": 2, **arguments}
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder), report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=1, **chosen
        ),
        train_dataset=data,
        eval_dataset=data,
        **options,
    )


def logits_of(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def evaluated(trainer: Any) -> dict[str, float]:
    found = trainer.evaluate()
    return {name: found[f"eval_{name}"] for name in LOGGED if f"eval_{name}" in found}


@quietly
def test_trainer_logs_what_evaluate_says(tmp_path: Path) -> None:
    parts, model = ForTrainer(), bert("BertForSequenceClassification", num_labels=3)
    labels = TOKENS[:, 0] % 3
    trainer = hf_trainer(tmp_path, model, labels, {"eval_strategy": "epoch"}, compute_metrics=parts, callbacks=[parts])
    trainer.train()
    truth = parts_of(logits_of(model), labels)
    told = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {name: told[-1][f"eval_{name}"] for name in truth} == pytest.approx(truth, **IN_FLOAT32)
    assert told[-1]["eval_loss"] == pytest.approx(truth["cross_entropy"], rel=1e-5)  # their float32
    assert told[0]["eval_cross_entropy"] != pytest.approx(truth["cross_entropy"], rel=1e-3)
    assert parts.record is not None
    assert parts.record["skill"].low < truth["skill"] < parts.record["skill"].high
    assert parts.record.facts["rows"] == 30


@quietly
@pytest.mark.parametrize(
    ("arguments", "every"),
    [
        ({}, 1),
        ({"batch_eval_metrics": True}, 1),
        ({"batch_eval_metrics": True}, 3),
        ({"eval_do_concat_batches": False}, 3),
    ],
    ids=str,
)
def test_a_language_model_s_positions_predict_the_next(tmp_path: Path, arguments: dict, every: int) -> None:
    parts, model = ForTrainer(every=every), llama()
    options = {"preprocess_logits_for_metrics": parts.preprocess} if every > 1 else {}
    trainer = hf_trainer(tmp_path, model, LABELS, arguments, compute_metrics=parts, callbacks=[parts], **options)
    z, y = logits_of(model)[:, :-1][:, ::every], LABELS[:, 1:][:, ::every]
    counts = y != -100
    truth = parts_of(z[counts], y[counts])
    assert evaluated(trainer) == pytest.approx(truth, **IN_FLOAT32)
    assert evaluated(trainer) == pytest.approx(truth, **IN_FLOAT32)  # nothing is left of the evaluation before
    assert parts.record is not None
    assert parts.record.facts["rows"] == int(counts.sum())
    unshifted = parts_of(logits_of(model)[LABELS != -100], LABELS[LABELS != -100])
    assert unshifted["cross_entropy"] != pytest.approx(truth["cross_entropy"], rel=1e-3)


@quietly
def test_classes_of_each_token_are_those_of_its_own_place(tmp_path: Path) -> None:
    parts, model = ForTrainer(), bert("BertForTokenClassification", num_labels=4)
    labels = torch.where(LABELS == -100, LABELS, LABELS % 4)
    trainer = hf_trainer(tmp_path, model, labels, {}, compute_metrics=parts, callbacks=[parts])
    counts = labels != -100
    truth = parts_of(logits_of(model)[counts], labels[counts])
    assert evaluated(trainer) == pytest.approx(truth, **IN_FLOAT32)
    shifted = parts_of(logits_of(model)[:, :-1][counts[:, 1:]], labels[:, 1:][counts[:, 1:]])
    assert shifted["cross_entropy"] != pytest.approx(truth["cross_entropy"], rel=1e-3)


@quietly
def test_several_labels_at_once_are_yes_or_no_each(tmp_path: Path) -> None:
    parts = ForTrainer()
    model = bert("BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification")
    labels = (TOKENS[:, :3] > 7).float()
    trainer = hf_trainer(tmp_path, model, labels, {}, compute_metrics=parts, callbacks=[parts])
    truth = parts_of(logits_of(model).flatten(), labels.flatten(), truth="soft")
    assert evaluated(trainer) == pytest.approx(truth, **IN_FLOAT32)


Z = torch.randn(4, 5, 6, generator=G)
SHIFTS = r"say causal=True if position i predicts the label of i \+ 1"
REFUSED = {
    "three dimensions": (ForTrainer, Z, torch.zeros(4, 5, dtype=torch.int64), SHIFTS),
    "a regression": (ForTrainer, Z[:, 0, :1], torch.randn(4), "are a regression"),
    "no labels": (ForTrainer, Z[:, 0], None, "there are none: say label_names="),
    "two kinds of labels": (ForTrainer, Z[:, 0], (Z, Z), "there are 2: say label_names="),
    "other labels": (lambda: ForTrainer(causal=True), Z, torch.zeros(4, 8, dtype=torch.int64), r"need labels \(4, 4\)"),
    "only ignored": (ForTrainer, Z[:, 0], torch.full((4,), -100), "there are no rows to measure"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_a_sentence(case: str) -> None:
    make, logits, labels, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence):
        make()(transformers.EvalPrediction(logits, labels))


@quietly
def test_a_callback_that_measures_nothing_is_noticed(tmp_path: Path) -> None:
    model = bert("BertForSequenceClassification", num_labels=3)
    with pytest.raises(DataError, match="give it to Trainer twice, as compute_metrics= and in callbacks="):
        hf_trainer(tmp_path, model, TOKENS[:, 0] % 3, {}, callbacks=[ForTrainer()]).evaluate()
    model = bert("BertForSequenceClassification", num_labels=1, problem_type="regression")
    with pytest.raises(DataError, match="is a regression"):
        hf_trainer(tmp_path, model, TOKENS[:, 0].float(), {}, callbacks=[ForTrainer()])
    with pytest.raises(DataError, match="every should be 1 or more"):
        ForTrainer(every=0)


def test_an_evaluation_broken_off_leaves_nothing_behind() -> None:
    parts = ForTrainer()
    seen = transformers.EvalPrediction(X[:, :3].numpy(), Y.numpy())
    assert parts(seen, compute_result=False) == {}
    parts.on_train_begin(None, None, None)
    assert parts(seen) == pytest.approx(parts_of(X[:, :3], Y), **EXACT)


@quietly
def test_the_guide_s_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_docs import blocks

    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "guides" / "callbacks.md"
    namespace: dict[str, object] = {"__name__": "page"}
    ran = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), namespace)
            ran += 1
    assert ran >= 3
