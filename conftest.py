"""For every test: workers of pytest-xdist share the cores, so each has one thread, and none spins while it waits."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, which looks at them once
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
