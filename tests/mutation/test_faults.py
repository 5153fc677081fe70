"""Whether every fault can still be planted; whether the suite notices it, ``python -m tests.mutation`` says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from crossent.compute.losses import LOSSES
from tests.mutation.fault import PACKAGE, Fault
from tests.mutation.faults import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.name}")
def test_every_fault_has_its_place_and_its_tests(fault: Fault) -> None:
    source = (ROOT / PACKAGE / fault.file).read_text()
    planted = fault.planted(source)
    assert planted != source
    compile(planted, fault.file, "exec")
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name}(" in (ROOT / "tests" / path).read_text(), f"{test} is no test any more"
        assert (ROOT / "tests" / path).exists()


def test_a_fault_whose_text_has_moved_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"stands 0 times\. The code has moved"):
        replace(FAULTS[0], old="nowhere").planted("source")


def test_there_are_enough_faults_and_each_loss_has_one() -> None:
    assert len(FAULTS) >= 60
    assert len({(fault.file, fault.name) for fault in FAULTS}) == len(FAULTS)
    missed = {kind.__name__ for kind in LOSSES} - {word for f in FAULTS for word in re.findall(r"\w+", f.only)}
    assert not missed, f"plant a fault in {missed}"
