"""Rows that processes share are dropped as one process drops them, wherever torch tosses the coins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

from crossent.minimise.training.whole import Whole
from tests.minimise.ranks import Attending

ROWS, P = 13, 0.4


def attend(**how):
    """Attention of one head to the rows' first, or of each to its own."""

    def see(x: Tensor) -> Tensor:
        few = x[:, :1] if how.get("enable_gqa") else x
        return functional.scaled_dot_product_attention(x, few, few, dropout_p=P, **how)

    return see


def heads(need_weights: bool, batch_first: bool = True, **more):
    """Heads of torch's own, whose batch comes first or second."""
    module = nn.MultiheadAttention(4, 2, dropout=P, batch_first=batch_first)

    def see(x: Tensor) -> Tensor:
        x = x[:, 0] if batch_first else x[:, 0].transpose(0, 1)
        seen, weights = module(x, x, x, need_weights=need_weights, **more)
        assert (weights is None) != need_weights
        return seen if batch_first else seen.transpose(0, 1)

    return see


def layers(kind: type[nn.RNNBase], batch_first: bool, p: float = P, **more):
    """Three recurrent layers, and what they end with."""
    module = kind(4, 5, 3, dropout=p, batch_first=batch_first, **more)

    def see(x: Tensor) -> Tensor:
        said, end = module(x[:, 0] if batch_first else x[:, 0].transpose(0, 1))
        ends = torch.cat([end] if isinstance(end, Tensor) else [state[..., :3] for state in end])
        said = said if batch_first else said.transpose(0, 1)
        return torch.cat([said.flatten(1), ends.transpose(0, 1).flatten(1)], 1)

    return see


def of_rows(module: nn.Module):
    """What reads rows of six places."""
    return lambda x: module(x[:, 0])


def of_numbers(module: nn.Module):
    """What reads rows of six numbers."""
    return lambda x: module(x[:, 0, :, 0])


def bert():
    """A transformer of Hugging Face, as a text network has it."""
    transformers = pytest.importorskip("transformers", reason="without crossent[text] no text is read")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **size))
    assert model.config._attn_implementation == "sdpa"
    model.train()

    def see(x: Tensor) -> Tensor:
        tokens = (x[:, 0, :, 0] > 0).long()
        return model(tokens, attention_mask=torch.ones_like(tokens)).logits

    return see


torch.manual_seed(0)
MASK = torch.rand(6, 6) > 0.3
MASK[2] = False  # who may look at nothing
CASES = {
    "elements": lambda: lambda x: functional.dropout(x, P),
    "elements that lie otherwise": lambda: lambda x: functional.dropout(x.transpose(1, 3), P),
    "the batch last in memory": lambda: lambda x: functional.dropout(x.movedim(0, -1).contiguous().movedim(-1, 0), P),
    "channels": lambda: lambda x: functional.dropout2d(x.transpose(1, 2), P),
    "attention": attend,
    "attention, causal": lambda: attend(is_causal=True, scale=0.3),
    "attention, masked": lambda: attend(attn_mask=MASK),
    "attention, weighted": lambda: attend(attn_mask=torch.arange(36.0).view(6, 6) / 10),
    "attention, grouped": lambda: attend(enable_gqa=True),
    "heads": lambda: heads(False),
    "heads, their weights": lambda: heads(True),
    "heads, the batch second": lambda: heads(True, batch_first=False, attn_mask=~MASK[[0, 1, 3, 4, 5, 0]]),
    "an encoder's layer": lambda: of_rows(nn.TransformerEncoderLayer(4, 2, 8, P, batch_first=True)),
    "LSTM": lambda: layers(nn.LSTM, True, bidirectional=True),
    "LSTM, projected": lambda: layers(nn.LSTM, False, proj_size=3),
    "GRU": lambda: layers(nn.GRU, False),
    "RNN": lambda: layers(nn.RNN, True, nonlinearity="relu", bias=False),
    "BERT": bert,
    "all at once": lambda: of_numbers(Attending(3)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
def test_the_coins_of_a_shared_batch_are_those_of_one_process(case: str) -> None:
    torch.manual_seed(1)
    network, x = CASES[case](), torch.randn(ROWS, 2, 6, 4)

    def coins() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    torch.manual_seed(5)
    alone = network(x)
    for rank in (0, 1):
        fabric = SimpleNamespace(global_rank=rank, world_size=2)
        with Whole(fabric, ROWS, coins()):
            here = network(x[rank::2])
        # Sums of float32 in another order; 4e-7 was seen.
        torch.testing.assert_close(here, alone[rank::2], atol=3e-6, rtol=0)
        with Whole(fabric, ROWS, None):  # the control: coins of one's own
            assert not torch.allclose(network(x[rank::2]), alone[rank::2], atol=1e-3)


def test_without_training_nothing_is_dropped_and_packed_rows_are_dropped_by_each_process() -> None:
    fabric, x = SimpleNamespace(global_rank=0, world_size=2), torch.randn(7, 3, 4)
    for module in (nn.GRU(4, 5, 2, dropout=P), nn.TransformerEncoderLayer(4, 2, 8, P), nn.Dropout(P)):
        module.eval()
        alone = module(x)
        with Whole(fabric, ROWS, torch.Generator().manual_seed(0)):
            torch.testing.assert_close(module(x), alone)
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    module, coins = nn.GRU(4, 5, 2, dropout=P), torch.Generator().manual_seed(0)
    with Whole(fabric, ROWS, coins):
        assert module(packed)[0].data.isfinite().all()
    assert torch.equal(coins.get_state(), torch.Generator().manual_seed(0).get_state())
