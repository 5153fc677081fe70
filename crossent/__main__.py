"""``python -m crossent``, which ``torchrun -m crossent`` needs."""

from crossent.cli import main

main()
