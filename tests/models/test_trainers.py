"""The Trainer of transformers and Lightning, with a lazy head and without: the same losses, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ABSENT = "transformers is not installed: pip install 'crossent[models]'"
transformers = pytest.importorskip("transformers", reason=ABSENT)

from crossent import Materialised, lazy_head  # noqa: E402
from tests.models.test_llama import llama  # noqa: E402

G = torch.Generator().manual_seed(5)
ROWS = [torch.randint(3, 99, (12,), generator=G) for _ in range(24)]
DATA = [{"input_ids": row, "labels": torch.where(torch.arange(12) < at % 7, -100, row)} for at, row in enumerate(ROWS)]
"""Rows in which different numbers of tokens count: a mean of means of micro-batches would be another loss."""

NARROW = {"rtol": 3e-3, "atol": 0.0}
WIDE = {"rtol": 3e-6, "atol": 0.0}
"""float32 after some steps of Adam, whose first ones magnify; bfloat16 has 8 bits."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)


def trained(folder: Path, lazy: bool, **options: Any) -> tuple[list[float], dict[str, float], list[str], list[str]]:
    """Losses of the steps, the evaluation, and what was made in training and in evaluation."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'crossent[models]'")
    model, made = llama(), []
    if lazy:
        lazy_head(model, on_materialise=lambda event: made.append(event.operation))
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        num_train_epochs=1,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=1,
        **options,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=DATA,
        eval_dataset=DATA,
        compute_metrics=lambda told: {"accuracy": float((told.predictions.argmax(-1) == told.label_ids).mean())},
    )
    trainer.train()
    during = list(made)
    made.clear()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.evaluate(), during, made


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:'pin_memory':UserWarning")
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"label_smoothing_factor": 0.1}], ids=str)
def test_the_trainer_with_accumulated_gradients(tmp_path: Path, options: dict, capsys: pytest.CaptureFixture) -> None:
    eager, lazy = (trained(tmp_path, kind, **options) for kind in (False, True))
    tight = NARROW if "bf16" in options else WIDE
    assert len(eager[0]) == 4
    torch.testing.assert_close(torch.tensor(lazy[0]), torch.tensor(eager[0]), **tight)
    assert eager[0][0] != eager[0][-1]
    assert lazy[2] == []
    torch.testing.assert_close(torch.tensor(lazy[1]["eval_loss"]), torch.tensor(eager[1]["eval_loss"]), **tight)
    assert lazy[1]["eval_accuracy"] == pytest.approx(eager[1]["eval_accuracy"], abs=0.01)
    assert lazy[3]  # compute_metrics asked for the logits, and got them


def test_another_head_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = trained(tmp_path, False)
    spoiled = llama()
    with torch.no_grad():
        spoiled.lm_head.weight[5] *= 1.5
    monkeypatch.setattr("tests.models.test_trainers.llama", lambda: spoiled)
    assert abs(trained(tmp_path, True)[0][0] / eager[0][0] - 1) > WIDE["rtol"]


@pytest.mark.filterwarnings("ignore")  # Lightning warns of loggers, workers and deprecations of its own
def test_lightning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'crossent[models]'")

    class Module(lightning.LightningModule):
        def __init__(self, lazy: bool) -> None:
            super().__init__()
            self.model: nn.Module = llama()
            self.losses: list[float] = []
            self.made: list[Materialised] = []
            if lazy:
                lazy_head(self.model, on_materialise=self.made.append)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss = self.model(**batch).loss
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            self.log("loss", self.model(**batch).loss)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def run(lazy: bool, precision: str) -> tuple[list[float], float]:
        module = Module(lazy)
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=3,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(DATA, batch_size=2)
        trainer.fit(module, loader, loader)
        assert not module.made
        return module.losses, float(trainer.callback_metrics["loss"])

    for precision, tight in (("32-true", WIDE), ("bf16-mixed", NARROW)):
        (eager, at_end), (lazy, lazy_at_end) = run(False, precision), run(True, precision)
        assert len(eager) == 12
        assert math.isfinite(at_end)
        torch.testing.assert_close(torch.tensor([*lazy, lazy_at_end]), torch.tensor([*eager, at_end]), **tight)
