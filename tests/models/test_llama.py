"""One language model of transformers through all that is done with one: saved, adapted, generated from, compiled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ABSENT = "transformers is not installed: pip install 'crossent[models]'"
transformers = pytest.importorskip("transformers", reason=ABSENT)

from crossent import LazyLogits, Materialised, eager_head, lazy_head  # noqa: E402

IDS = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(0))
LABELS = torch.where(torch.arange(12) < 3, -100, IDS)


# transformers and peft still call what transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore:.*checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()


def llama(tied: bool = True, dtype: torch.dtype = torch.float32, layers: int = 2) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(dtype)


def given(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=LABELS).loss


def outside(model: nn.Module) -> Tensor:
    z = model(input_ids=IDS).logits
    return F.cross_entropy(z[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())


def alike(make: Callable[[], nn.Module], use: Callable[[nn.Module], Tensor] = given) -> list[Materialised]:
    """The loss of a model and its gradients, with its own head and with a lazy one; what was made meanwhile."""
    made: list[Materialised] = []
    losses, grads = [], []
    for lazy in (False, True):
        model = make()
        if lazy:
            lazy_head(model, on_materialise=made.append)
        loss = use(model)
        loss.backward()
        losses.append(loss.detach())
        grads.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    rough = next(make().parameters()).dtype != torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-2 if rough else 1e-6)
    assert grads[0].keys() == grads[1].keys()
    assert grads[0]
    whole = sum(float(g.norm() ** 2) for g in grads[0].values()) ** 0.5
    for name, g in grads[0].items():
        # float32 rows in another order; in 16 bits every gradient on the way is rounded to 8 bits.
        assert float((grads[1][name] - g).norm()) <= (1e-2 if rough else 1e-6) * whole, name
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("use", [given, outside])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_a_model(tied: bool, use: Callable, dtype: torch.dtype) -> None:
    assert alike(lambda: llama(tied, dtype), use) == []


def test_the_number_of_tokens_of_all_micro_batches() -> None:
    assert (
        alike(llama, lambda model: model(input_ids=IDS, labels=LABELS, num_items_in_batch=torch.tensor(31)).loss) == []
    )


def test_gradient_checkpointing_and_autocast() -> None:
    def checkpointed(model: nn.Module) -> Tensor:
        model.train().gradient_checkpointing_enable()
        return given(model)

    assert alike(llama, checkpointed) == []

    def narrow(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return given(model)

    assert alike(llama, narrow) == []


@pytest.mark.models  # twenty seconds of Dynamo; tests/compute/test_head_traced.py compiles something small
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, and cannot hide an error
def test_compiled() -> None:
    for options in ({"backend": "aot_eager"}, {"backend": "aot_eager", "fullgraph": True}):
        torch.compiler.reset()
        assert alike(lambda: llama(layers=1), lambda model: given(torch.compile(model, **options))) == []  # noqa: B023


def test_generation_is_the_same() -> None:
    plain, lazy = llama().eval(), lazy_head(llama()).eval()
    for options in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True, "top_k": 5}):
        told = []
        for model in (plain, lazy):
            torch.manual_seed(1)
            told.append(model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, **options))
        assert torch.equal(*told), options


def test_saved_loaded_copied_and_undone(tmp_path: Path) -> None:
    plain, model = llama(), lazy_head(llama())
    assert list(model.state_dict()) == list(plain.state_dict())
    model.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.lm_head) is nn.Linear
    assert torch.equal(given(loaded), given(plain))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.lm_head.weight is twin.model.embed_tokens.weight
        assert torch.equal(given(twin), given(model))
        assert isinstance(twin(IDS).logits, LazyLogits)
    assert eager_head(model) is model
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(given(model), given(plain))


def test_adapted_by_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'crossent[models]'")

    def lora(**options: object) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model = llama(tied=False)
            torch.manual_seed(3)
            return peft.get_peft_model(
                model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **options)
            )

        return make

    assert alike(lora(target_modules=["q_proj"])) == []
    assert alike(lora(target_modules=["lm_head"])) == []
    assert alike(lora(target_modules=["q_proj", "lm_head"], lora_dropout=0.0)) == []
    assert alike(lora(target_modules=["q_proj"], modules_to_save=["lm_head"])) == []
    assert [e.operation for e in alike(lora(target_modules=["lm_head"], use_dora=True))] == ["add", "mul", "mul"]
    model = lazy_head(lora(target_modules=["lm_head"])())
    before = given(model).item()
    merged = eager_head(model).merge_and_unload()
    assert type(merged.lm_head) is nn.Linear
    assert given(merged).item() == pytest.approx(before, rel=1e-6)


def test_trl_code() -> None:
    trl = pytest.importorskip("trl.trainer.utils", reason="trl is not installed: pip install 'crossent[models]'")

    def selected(model: nn.Module) -> Tensor:
        return trl.selective_log_softmax(model(input_ids=IDS).logits[:, :-1], IDS[:, 1:]).square().mean()

    assert alike(llama, selected) == []
    assert alike(lambda: llama(dtype=torch.bfloat16), selected) == []

    def entropy(model: nn.Module) -> Tensor:
        return trl.entropy_from_logits(model(input_ids=IDS).logits).mean()

    assert alike(llama, entropy)  # softmax times log-softmax, a few rows at a time: those are made
