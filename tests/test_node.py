"""Copies and pickles: what they keep, what they do not hold, and when they are freed."""

import concurrent.futures
import copy
import gc
import multiprocessing
import operator
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import operators
import problems
import pytest
from copies import WAYS, ones
from counting import collect
from problems import POINT, SIZE

import linops


def test_operators_are_freed_at_once():
    """No cycles: residuals go with their operator, not at some later collection."""
    gc.disable()
    try:
        J = linops.Jacobian(problems.values, POINT)
        A = J.T @ J + 0.1 * linops.Identity(SIZE)
        A @ np.ones(SIZE, np.float32)
        J.rmatvec(J @ np.ones(SIZE, np.float32))
        J @ np.ones(SIZE, np.complex64)
        dead = [weakref.ref(J), weakref.ref(A), weakref.ref(J.linearize())]
        del J, A
        assert [ref() for ref in dead] == [None] * 3
    finally:
        gc.enable()


def _composite():
    J = linops.Jacobian(problems.values, POINT)
    return J.T @ J + 0.5 * linops.Identity(SIZE)


def test_a_copy_can_do_what_its_origin_can():
    H = linops.Hessian(problems.scalar, POINT)
    other = problems.tree_point("dict", np.float32, 5)
    for way in WAYS.values():
        np.testing.assert_array_equal(way(H).at(other) @ ones(H), H.at(other) @ ones(H))
        np.testing.assert_array_equal(way(way(H)) @ ones(H), H @ ones(H))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(H))._door._flat.treedef == H._door._flat.treedef, True
    )  # so that a pickled operator finds the programs of this process


def test_copies_keep_what_is_one_thing_one_thing():
    J = linops.Jacobian(problems.square, POINT)
    for way in WAYS.values():
        A = way(J - J.T)
        assert A.terms[0] is A.terms[1].operator.operator


def test_copies_and_pickles_hold_no_caches():
    H = linops.Hessian(problems.scalar, POINT)
    fresh = len(pickle.dumps(H))
    H.rmatvec(H @ ones(H))
    H @ ones(H).astype(np.complex64)
    assert len(pickle.dumps(H)) == fresh
    for way in WAYS.values():
        assert not {"_door", "_linearized", "_adjoint_door", "_complex_door", "_traced"} & set(vars(way(H)))


def test_linearized_operators_are_not_pickled():
    L = linops.Jacobian(problems.values, POINT).linearize()
    np.testing.assert_array_equal(copy.deepcopy(L) @ ones(L), L @ ones(L))
    for A in (L, L.T, linops.Hessian(problems.scalar, POINT).linearize() * 2):
        with pytest.raises(TypeError, match=r"a linearized operator, was pickled; expected the operator that it was"):
            pickle.dumps(A)


def test_float64_is_not_narrowed_by_a_pickle():
    with jax.enable_x64(True):
        x = problems.tree_point("dict", np.float64)
        made = [linops.Hessian(problems.scalar, x), linops.Matrix(np.eye(3)), 2 * linops.Diagonal(np.ones(2))]
        pickled = [pickle.dumps(A) for A in made]
        for A, data in zip(made, pickled, strict=True):
            B = pickle.loads(data)
            assert B.dtype == np.float64
            np.testing.assert_array_equal(B @ ones(A), A @ ones(A))
    for A, data in zip(made, pickled, strict=True):
        with pytest.raises(
            TypeError, match=r"pickled with arrays of 64 bits.*expected float64 to be enabled: call jax"
        ):
            pickle.loads(data)
        assert copy.deepcopy(A).dtype == np.float64
        np.testing.assert_array_equal(copy.deepcopy(A) @ ones(A), A @ ones(A))


PICKLED_FOR_WORKERS = ["normal_equations", "gauss_newton_real_loss"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes(method):
    """A worker that starts fresh gets the operator by pickle."""
    made = [operators.make(name, *operators.arguments(name, np.float32)) for name in PICKLED_FOR_WORKERS]
    made.append(linops.Jacobian(jnp.sin, POINT["b"]))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        results = list(pool.map(operator.matmul, made, map(ones, made)))
    for A, result in zip(made, results, strict=True):
        np.testing.assert_allclose(result, A @ ones(A), rtol=1e-5, atol=1e-5)


def test_copies_are_freed_at_once():
    collect()
    gc.disable()
    try:
        for way in WAYS.values():
            A = way(_composite())
            A @ ones(A)
            dead = [weakref.ref(A), weakref.ref(A.terms[0])]
            del A
            assert [ref() for ref in dead] == [None, None]
    finally:
        gc.enable()
