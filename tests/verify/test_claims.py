"""What is claimed of an operator, and what is not."""

import problems
from faults import X

import linops
from linops import check


def test_what_is_claimed_to_be_positive_semidefinite():
    made = {
        linops.GaussNewton(problems.values, X): True,
        linops.GaussNewton(problems.values, X, problems.loss): None,
        linops.JacobianGram(problems.values, X): True,
        linops.JacobianGram(problems.values, X, X): None,
    }
    for A, holds in made.items():
        assert {f.name: f.holds for f in check(A).findings}["positive semidefinite"] is holds
