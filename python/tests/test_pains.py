"""The pains of other tools, each a program of its own: none of them hurts here.

What they do on the standard library is not asked again on every run (most hang there until their limit): ``cargo xtask
pains`` runs both, and docs/reliability.md has the table.
"""

import importlib.util
import pathlib
import sys

import pytest

_FILE = pathlib.Path(__file__).parents[2] / "tests" / "pains" / "run.py"
_SPEC = importlib.util.spec_from_file_location("pains", _FILE)
pains = sys.modules["pains"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(pains)

# Below the watchdog's; the programs themselves give up earlier.
_LIMIT = 100


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(case, variant, id="-".join((case.name, *variant)))
        for case in pains.CASES
        for variant in case.variants()
    ],
)
def test_it_does_not_hurt(case, variant):
    outcome = pains.run(case, variant, "phalanx", limit=_LIMIT)
    if outcome.verdict == "skipped":
        pytest.skip(outcome.detail)
    assert outcome.verdict == "good", outcome.detail
