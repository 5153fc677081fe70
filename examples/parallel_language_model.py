"""Train a small decoder on Python's own standard library, its head spread over processes.

torchrun --nproc-per-node=2 examples/parallel_language_model.py    # each has half of the vocabulary
python examples/parallel_language_model.py                         # one has all of it: the same losses

The trunk is on every process, and sees the same batch; the head's logits exist nowhere, and no process has more than
its share of the head. Each step has two micro-batches of different numbers of words, and one mean over both.
"""

import os
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossent import linear_cross_entropy, parallel

WORDS, WIDTH, LENGTH, STEPS = 2000, 64, 64, 30
MODULES = ("argparse", "ast", "datetime", "difflib", "doctest", "inspect", "pathlib", "pickle", "tarfile", "typing")

# --- the text: words and signs of the sources, the rarer ones as one ----------------------------------------------

library = Path(sysconfig.get_path("stdlib"))
text = "\n".join((library / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
pieces = re.findall(r"\w+|[^\w\s]|\n *", text)
common = [word for word, _ in Counter(pieces).most_common(WORDS - 1)]
number = {word: at for at, word in enumerate(common, start=1)}
words = torch.tensor([number.get(piece, 0) for piece in pieces])

# --- the model: attention is PyTorch's own ------------------------------------------------------------------------


class Decoder(nn.Module):
    """Words (N, L) → hidden states (N, L, WIDTH), each of which has seen the words before it and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of sequences of one length."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(self.word(x) + self.place(torch.arange(x.shape[1])), mask=mask, is_causal=True)


# --- the processes: torchrun says how many there are --------------------------------------------------------------

ranks = int(os.environ.get("WORLD_SIZE", "1"))
rank = int(os.environ.get("RANK", "0"))
if ranks > 1:
    dist.init_process_group("gloo")

torch.manual_seed(0)  # the same on every process, so that all have the same trunk
torch.set_num_threads(1)
trunk = Decoder()
whole_head = torch.randn(WORDS, WIDTH) / WIDTH**0.5
head = nn.Parameter(whole_head.tensor_split(ranks)[rank].clone())
optimizer = torch.optim.AdamW([*trunk.parameters(), head], lr=3e-3)


def loss_of(x: Tensor, y: Tensor, normaliser: Tensor) -> Tensor:
    """The loss of the next words, from all of the head or from a share of it."""
    if ranks == 1:
        return linear_cross_entropy(trunk(x), head, y, normaliser=normaliser)
    return parallel.linear_cross_entropy(trunk(x), head, y, normaliser=normaliser)


def micro_batches() -> list[tuple[Tensor, Tensor]]:
    """Two micro-batches of sequences and their next words; some words of the second do not count."""
    made = []
    for sequences in (8, 4):
        starts = torch.randint(len(words) - LENGTH - 1, (sequences,))
        rows = torch.stack([words[at : at + LENGTH + 1] for at in starts])
        made.append((rows[:, :-1], rows[:, 1:].clone()))
    made[1][1][:, : LENGTH // 2] = -100
    return made


for step in range(1, STEPS + 1):
    batches = micro_batches()
    count = parallel.normaliser([y for _, y in batches])  # all processes have the same rows, and count them once
    optimizer.zero_grad()
    loss = torch.zeros(())
    for x, y in batches:
        value = loss_of(x, y, count)
        value.backward()
        loss += value.detach()
    optimizer.step()
    if rank == 0 and (step == 1 or step % 10 == 0):
        print(f"step {step:3d}: {loss:.4f} nats per word", flush=True)

if rank == 0:
    print(f"{ranks} process{'es' if ranks > 1 else ''}, {head.shape[0]:,} of {WORDS:,} words on this one")
if ranks > 1:
    dist.destroy_process_group()
