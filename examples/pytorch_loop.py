"""Train a small network on scikit-learn's digits with crossent's loss in an ordinary PyTorch loop.

python examples/pytorch_loop.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from crossent import cross_entropy

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
pieces = train_test_split(x / 16, y, test_size=0.25, stratify=y, random_state=0)
x_train, x_test, y_train, y_test = (torch.as_tensor(piece) for piece in pieces)
x_train, x_test = x_train.float(), x_test.float()

model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Dropout(0.2), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def test_cross_entropy() -> float:
    """What the test labels cost, in nats: without smoothing, for this is a measurement."""
    model.eval()
    with torch.no_grad():
        return cross_entropy(model(x_test), y_test).item()


print(f"before: {test_cross_entropy():.3f} nats per digit on {len(y_test)} test rows")
for _ in range(20):
    model.train()
    for rows in torch.randperm(len(y_train)).split(64):
        loss = cross_entropy(model(x_train[rows]), y_train[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"after:  {test_cross_entropy():.3f} nats per digit on {len(y_test)} test rows")
