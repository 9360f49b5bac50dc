"""The record of a run, and the exception that carries what was found."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import ArpackNoConvergence

from linops.linalg import NoConvergence, Record
from linops.linalg.records import REASONS

RECORD = Record(*map(jnp.asarray, ([True, False], 1, 30, 124, [1e-9, 2e-3], [1e-6, 1e-6])))


def test_a_record_prints_and_goes_through_jit():
    assert str(RECORD).splitlines() == [
        "1 of 2 converged: the limit of iterations was reached",
        "  iterations 30, products 124, largest residual 2.0e-03 (tolerance 1.0e-06)",
    ]
    assert RECORD.reason == REASONS[1]
    seen = []

    @jax.jit
    def through(record):
        seen.append(repr(record))
        return record, record.reason

    record, reason = through(RECORD)
    assert repr(record) == repr(RECORD)
    assert int(reason) == 1
    assert "Tracer" in seen[0]


def test_a_record_of_nothing_prints():
    nothing = np.zeros(0)
    assert "0 of 0 converged: converged" in str(
        Record(nothing, np.array(0), np.array(0), np.array(0), nothing, nothing)
    )


def test_no_convergence_is_one_of_scipy_and_can_be_pickled():
    error = NoConvergence("1 of 2 values", np.ones(1), np.ones((3, 1)), RECORD)
    with pytest.raises(ArpackNoConvergence, match="1 of 2 values") as caught:
        raise error
    assert caught.value.record is RECORD
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == "1 of 2 values"
    assert copied.eigenvectors.shape == (3, 1)
