"""`check` finds nothing wrong: adjoints, linearity, claims, blocks, fresh products, derivatives by differences."""

import operators

from linops import check


def test_check(name, pair):
    """And it checks that an operator is positive semidefinite where that is claimed, and not elsewhere."""
    report = check(pair[0], key=5)
    report.raise_if_failed()
    claimed = "p" in operators.ZOO[name].traits.claims
    assert {f.name: f.holds for f in report.findings}["positive semidefinite"] is (True if claimed else None)
