"""Entropy and divergence: identities, edges, and a truth in mpmath."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from scipy import stats

from crossent import cross_entropy, entropy, kl_divergence
from tests.compare import ulps


def test_known_values() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert entropy(p, given="probabilities", unit="bits") == 1.75
    assert entropy(torch.tensor([4, 2, 1, 1]), given="counts", unit="bits") == 1.75
    assert entropy(p.log(), given="log_probabilities", unit="bits").item() == pytest.approx(1.75, rel=1e-7)
    assert entropy(torch.tensor([1.0, 0.0]), given="probabilities") == 0
    assert entropy(torch.tensor([3.0, -torch.inf]), given="logits") == 0


def test_scipy_agrees() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(4, 7).double().softmax(-1), torch.randn(4, 7).double().softmax(-1)
    for row in range(4):
        ours = kl_divergence(p[row], q[row], given="probabilities")
        assert ours.item() == pytest.approx(stats.entropy(p[row], q[row]), rel=1e-13)
        assert ours.item() != pytest.approx(stats.entropy(q[row], p[row]), rel=1e-3)


def test_cross_entropy_is_entropy_plus_divergence() -> None:
    torch.manual_seed(1)
    z, t = torch.randn(6, 9).double(), torch.randn(6, 9).double()
    p = t.softmax(-1)
    left = cross_entropy(z, p, reduction="none")
    right = entropy(t, given="logits") + kl_divergence(p, z, given=("probabilities", "logits"))
    torch.testing.assert_close(left, right, rtol=1e-14, atol=0)


def test_close_distributions_do_not_cancel() -> None:
    z = torch.tensor([[0.1, -0.3, 1.0]], dtype=torch.float64)
    other = z + torch.tensor([[1e-9, 0.0, 0.0]], dtype=torch.float64)

    def softmax(row: list[float]) -> list[mp.mpf]:
        power = [mp.exp(mp.mpf(v)) for v in row]
        return [v / mp.fsum(power) for v in power]

    p, q = softmax(z[0].tolist()), softmax(other[0].tolist())
    truth = float(mp.fsum(a * mp.log(a / b) for a, b in zip(p, q, strict=True)))
    # log p - log q is 1e-9 and known to 1e-16, a ten-millionth of it; KL is of second order in it.
    ours = kl_divergence(z, other, given="logits")
    assert truth == pytest.approx(1e-19, rel=1, abs=0)  # far below the rounding of log p itself, 1e-16
    assert ours.item() == pytest.approx(truth, rel=1e-5, abs=0)
    naive = (z.softmax(-1) * (z.log_softmax(-1) - other.log_softmax(-1))).sum()
    assert naive.item() != pytest.approx(truth, rel=1e-5, abs=0)


def test_zeros_and_infinities() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert kl_divergence(p, q, given="probabilities", unit="bits") == 1
    assert kl_divergence(q, p, given="probabilities") == torch.inf
    z = torch.tensor([0.0, -torch.inf], requires_grad=True)
    (dz,) = torch.autograd.grad(kl_divergence(z, q, given=("logits", "probabilities")), z)
    assert dz.isfinite().all()


def test_gradients() -> None:
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: entropy(z, given="logits"), z)
    assert torch.autograd.gradcheck(lambda z, t: kl_divergence(z, t, given="logits"), (z, t))


def test_16_bit_input_makes_a_float32_answer() -> None:
    z = torch.randn(3, 5).to(torch.bfloat16)
    ours = entropy(z, given="logits")
    assert ours.dtype == torch.float32
    assert ulps(ours, entropy(z.double(), given="logits")) <= 0.51


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: entropy(torch.tensor([0.5, 0.6]), given="probabilities"), "sum to 1; 1 do not"),
        (lambda: entropy(torch.tensor([0.5, -0.5]), given="probabilities"), "Are these logits"),
        (lambda: entropy(torch.tensor([0.5, 0.5]), given="log_probabilities"), "sum to 1"),
        (lambda: entropy(torch.tensor([0, 0]), given="counts"), "nothing was counted"),
        (lambda: entropy(torch.tensor([1.0]), given="scores"), "named and never guessed"),
        (lambda: entropy(torch.tensor([1.0]), given="logits", unit="dits"), "'nats' or 'bits'"),
    ],
)
def test_errors_are_sentences(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
