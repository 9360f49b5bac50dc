"""Monitored operators: what is counted, stopped and shown, and that it changes no number."""

import copy
import functools
import gc
import io
import math
import pickle
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from counting import collect
from scipy.sparse.linalg import LinearOperator, cg, eigsh, expm_multiply, lsmr, svds

import linops
from linops.progress import Line

RNG = np.random.default_rng(0)
TALL = RNG.normal(size=(12, 8)).astype(np.float32)
COMPLEX = (RNG.normal(size=(8, 8)) + 1j * RNG.normal(size=(8, 8))).astype(np.complex64)
V8, V12 = np.ones(8, np.float32), np.ones(12, np.float32)


def tall(dtype=np.float32):
    return linops.Matrix(TALL.astype(dtype))


def gram(dtype=np.float32):
    A = tall(dtype)
    return A.T @ A + linops.Identity(8)


def hessian(x):
    return linops.Hessian(lambda x: jnp.sum((x**2 - 1) ** 2) + jnp.sum(x) ** 2, x)


class Terminal(io.StringIO):
    """What stands for stderr on a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, without tqdm."""
    stderr = Terminal()
    monkeypatch.setattr("linops.progress.sys", types.SimpleNamespace(stderr=stderr))  # pytest puts back sys.stderr
    monkeypatch.setitem(sys.modules, "tqdm", None)
    return stderr


class ByHand(LinearOperator):
    """An operator of SciPy's kind whose products are those of another, counted by themselves."""

    def __init__(self, A):
        super().__init__(A.dtype, A.shape)
        self.A, self.matvecs, self.rmatvecs = A, 0, 0

    def _matvec(self, v):
        self.matvecs += 1
        return self.A.matvec(v.reshape(-1))

    def _rmatvec(self, v):
        self.rmatvecs += 1
        return self.A.rmatvec(v.reshape(-1))

    def _matmat(self, V):
        self.matvecs += V.shape[1]
        return self.A.matmat(V)

    def _rmatmat(self, V):
        self.rmatvecs += V.shape[1]
        return self.A.rmatmat(V)


B8, B12 = np.ones(8), np.ones(12)
SOLVERS = {
    "cg": (gram, lambda A: cg(A, B8)[0]),
    "eigsh": (gram, lambda A: eigsh(A, k=3, v0=B8)[1]),
    "lsmr": (tall, lambda A: lsmr(A, B12)[0]),
    "svds": (tall, lambda A: svds(A, k=3, v0=B8)[0]),
    "expm_multiply": (gram, lambda A: seeded(expm_multiply, A, np.ones((8, 2)), traceA=1.0)),
}


def seeded(function, *arguments, **options):
    """What draws from NumPy's global generator."""
    np.random.seed(0)  # noqa: NPY002
    return function(*arguments, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_solver_counts_right_and_gives_the_same_bits(solver, terminal, x64):
    """Beside an operator of SciPy's that counts by hand; with a bar and without."""
    make, solve = SOLVERS[solver]
    A = make(np.float64)
    by_hand = ByHand(A)
    expected = solve(by_hand)
    for progress in (False, True):
        with linops.monitor(A, progress=progress) as M, linops.monitor(ByHand(A), progress=progress) as foreign:
            for monitored in (M, foreign):
                assert np.array_equal(solve(monitored), expected)
                counts = by_hand.matvecs, by_hand.rmatvecs
                assert (monitored.matvecs, monitored.rmatvecs) == (
                    (sum(counts), 0) if monitored is M and A.symmetric else counts  # its adjoint is itself
                )
                assert 0 < monitored.seconds <= monitored.record.elapsed
                assert 0 < monitored.record.median < monitored.seconds
        assert bool(terminal.getvalue()) is progress
    assert isinstance(M, linops.Operator)
    assert not isinstance(foreign, linops.Operator)


def test_the_hessian_of_minimize_keeps_one_record_over_all_points():
    def solve(hess):
        return scipy.optimize.minimize(f, np.linspace(-1, 2, 6), jac=jac, hess=hess, method="Newton-CG")

    def f(x):
        return np.sum((x**2 - 1) ** 2) + np.sum(x) ** 2

    def jac(x):
        return 4 * (x**2 - 1) * x + 2 * np.sum(x)

    with jax.enable_x64(True):
        H = hessian(np.zeros(6))
        M = linops.monitor(H, progress=False)
        result, expected = solve(M.at), solve(H.at)
        counted = []
        solve(lambda x: counted.append(ByHand(H.at(x))) or counted[-1])
    assert np.array_equal(result.x, expected.x)
    assert M.matvecs == sum(B.matvecs for B in counted) > len(counted) > 1


class Wrapped(linops.Operator):
    """An operator of a user's, of another one."""

    inner: linops.Operator

    domain = property(lambda self: self.inner.domain)
    codomain = property(lambda self: self.inner.codomain)

    def _mv(self, v):
        return self.inner._mv(v)


# What counts as how much: what is done with M, a monitored operator, and how many products of each kind that is.

J = linops.Jacobian(lambda p: {"y": jnp.tanh(jnp.asarray(TALL) @ p["w"])}, {"w": V8})
HERMITIAN = (lambda A: A.H @ A)(linops.Matrix(COMPLEX))
D = linops.Diagonal(np.arange(12, dtype=np.float32))
COUNTS = {
    "vector": (J, lambda M: M @ V8, (1, 0)),
    "column": (J, lambda M: M.matvec(V8[:, None]), (1, 0)),
    "integers": (J, lambda M: M @ np.arange(8), (1, 0)),
    "batch": (J, lambda M: M.matvec(np.ones((3, 8), np.float32)), (3, 0)),
    "block": (J, lambda M: M @ np.ones((8, 5), np.float32), (5, 0)),
    "block of no columns": (J, lambda M: M @ np.ones((8, 0), np.float32), (0, 0)),
    "on the device": (J, lambda M: M @ jnp.ones(8), (1, 0)),
    "block on the device": (J, lambda M: M @ jnp.ones((8, 3)), (3, 0)),
    "complex": (J, lambda M: M @ (1j * V8), (1, 0)),
    "tree": (J, lambda M: M.mv({"w": V8}), (1, 0)),
    "adjoint": (J, lambda M: M.rmatvec(V12), (0, 1)),
    "adjoint of integers": (J, lambda M: M.rmatvec(np.arange(12)), (0, 1)),
    "adjoint block": (J, lambda M: M.rmatmat(np.ones((12, 2), np.float32)), (0, 2)),
    "transpose": (J, lambda M: M.T @ V12 + M.H @ V12 + V12 @ M, (0, 3)),
    "transpose of a tree": (J, lambda M: M.T.mv({"y": V12}), (0, 1)),
    "transpose of the transpose": (J, lambda M: M.T.T @ V8, (1, 0)),
    "adjoint of the transpose": (J, lambda M: M.T.rmatvec(V8), (1, 0)),
    "dense": (J, lambda M: M.toarray(), (8, 0)),
    "dense by rows": (J.T, lambda M: M.toarray(), (0, 8)),
    "diagonal": (J, lambda M: M.diagonal(), (8, 0)),
    "linearized": (J, lambda M: M.linearize() @ V8, (1, 0)),
    "shallow copy": (J, lambda M: copy.copy(M) @ V8, (1, 0)),
    "symmetric": (gram(), lambda M: M @ V8 + M.T @ V8 + M.rmatvec(V8), (3, 0)),
    "complex matrix": (linops.Matrix(COMPLEX), lambda M: M @ V8 + M.T @ V8 + M.H @ V8 + M.rmatvec(V8), (1, 3)),
    "complex adjoint block": (linops.Matrix(COMPLEX), lambda M: M.rmatmat(np.stack([V8, V8], axis=1)), (0, 2)),
    "Hermitian": (HERMITIAN, lambda M: M @ V8 + M.H @ V8 + M.T @ V8, (3, 0)),
    "inside of jit": (J, lambda M: jax.jit(lambda M, v: M @ v)(M, jnp.ones(8)), (0, 0)),
    "traced": (J, lambda M: jax.vmap(lambda v: M @ v)(jnp.ones((3, 8))), (0, 0)),
    # Algebra: one program, that counts the products with M in it.
    "scaled": (J, lambda M: (2 * M) @ V8, (1, 0)),
    "sum": (J, lambda M: (M + M + linops.Matrix(TALL)) @ V8, (2, 0)),
    "summand on the right": (J, lambda M: (linops.Matrix(TALL) - M) @ V8, (1, 0)),
    "normal equations": (J, lambda M: (M.T @ M + 0.5 * linops.Identity(8)) @ V8, (1, 1)),
    "block of normal equations": (J, lambda M: (M.T @ M) @ np.ones((8, 3), np.float32), (3, 3)),
    "weighted": (J, lambda M: (M.T @ (D @ M)) @ V8, (1, 1)),
    "product": (J, lambda M: (D @ M).T @ V12, (0, 1)),
    "adjoint of a product": (J, lambda M: (D @ M).rmatvec(V12), (0, 1)),
    "complex vector of a multiple": (J, lambda M: (2 * M) @ (1j * V8), (1, 0)),
    "within an operator of a user's": (J, lambda M: Wrapped(M) @ V8, (1, 0)),
    "transpose of an operator of a user's": (J, lambda M: Wrapped(M).T @ V12, (0, 1)),
    "power": (gram(), lambda M: M**3 @ V8, (3, 0)),
    "square of a symmetric one": (gram(), lambda M: (M @ M) @ V8, (2, 0)),
    "complex combination": (linops.Matrix(COMPLEX), lambda M: (M.H @ M + 1j * M.T) @ V8, (1, 2)),
    "dense composite": (J, lambda M: (M.T @ M).toarray(), (8, 8)),
    "what adapts": (linops.Identity(8), lambda M: (J + linops.Matrix(TALL) @ M) @ V8, (1, 0)),
    "SciPy's algebra": (J, lambda M: (M @ scipy.sparse.eye_array(8, dtype=np.float32)) @ V8, (1, 0)),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_what_counts(kind):
    A, call, counts = COUNTS[kind]
    M = linops.monitor(A, progress=False)
    record = M.record
    result, expected = call(M), call(A)
    assert (record.matvecs, record.rmatvecs) == counts
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-5), result, expected)
    assert M.record is record
    assert (M.dtype, M.domain, M.codomain) == (A.dtype, A.domain, A.codomain)
    claims = ("symmetric", "hermitian", "positive_semidefinite")
    assert [getattr(M, claim) for claim in claims] == [getattr(A, claim) for claim in claims]


def test_what_counts_of_foreign_ones():
    A = scipy.sparse.csr_array(TALL)
    M = linops.monitor(A, progress=False)
    for call, counts in {
        lambda A: A @ V8: (1, 0),
        lambda A: A @ V8[:, None]: (2, 0),
        lambda A: A @ np.ones((8, 3), np.float32): (5, 0),
        lambda A: A.T @ V12: (5, 1),
        lambda A: A.T @ np.ones((12, 2), np.float32): (5, 3),
    }.items():
        assert np.array_equal(call(M), call(A))
        assert (M.matvecs, M.rmatvecs) == counts
    assert np.array_equal(M.H @ V12, A.T @ V12)
    assert (M.matvecs, M.rmatvecs, M.shape, M.dtype) == (5, 4, A.shape, A.dtype)


def test_each_hears_of_its_own():
    """Of two monitors over one operator, and of one within another."""
    M, N = (linops.monitor(J, progress=False) for _ in range(2))
    outer = linops.monitor(M.T @ N, progress=False)
    outer @ V8
    assert [(A.matvecs, A.rmatvecs) for A in (M, N, outer)] == [(0, 1), (1, 0), (1, 0)]


def test_threads_lose_no_count():
    M = linops.monitor(tall(), progress=False)
    M @ V8, M.T @ V12
    threads = [threading.Thread(target=lambda: [(M @ V8, M.T @ V12) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (M.matvecs, M.rmatvecs) == (201, 201)


# Limits, callbacks, interruptions.


@pytest.mark.parametrize("A", [gram(), ByHand(gram())], ids=["linops", "SciPy"])
def test_the_product_beyond_the_limit_stops_the_solver_with_what_is_known(A):
    M = linops.monitor(A, progress=False, max_matvecs=3)
    seen = []
    with pytest.raises(linops.MatvecLimit, match="asks for 1 more after 3 matvecs and 0 rmatvecs, expected at") as info:
        cg(M, V8, rtol=0, callback=lambda x: (M.keep(x), seen.append(x.copy())))
    stop = pickle.loads(pickle.dumps(info.value))
    assert isinstance(stop, RuntimeError)
    assert (stop.matvecs, stop.rmatvecs, M.matvecs, M.record.remaining) == (3, 0, 3, 0)
    assert stop.seconds == M.seconds > 0
    assert np.array_equal(stop.iterate, seen[-1])
    residual = V8 - gram() @ stop.iterate  # of which the direction of cg is conjugate to the last
    assert stop.vector @ residual == pytest.approx(residual @ residual, rel=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_limit_stops_any_solver(solver, x64):
    make, solve = SOLVERS[solver]
    M = linops.monitor(make(np.float64), progress=False, max_matvecs=3)
    with pytest.raises(linops.MatvecLimit, match="expected at most max_matvecs=3 in all"):
        solve(M)
    assert 2 <= M.matvecs + M.rmatvecs <= 3  # a block goes whole or not


def test_a_limit_is_of_both_kinds_and_a_block_goes_whole_or_not():
    M = linops.monitor(tall(), progress=False, max_matvecs=5)
    M @ V8, M.T @ V12
    with pytest.raises(linops.MatvecLimit, match="asks for 4 more after 1 matvecs and 1 rmatvecs"):
        M @ np.ones((8, 4), np.float32)
    assert (M.matvecs, M.rmatvecs, M.record.remaining) == (1, 1, 3)
    M @ np.ones((8, 3), np.float32)
    with pytest.raises(linops.MatvecLimit, match="asks for 2 more"):
        (M.T @ M) @ V8
    vector = V12.copy()
    with pytest.raises(linops.MatvecLimit) as info:
        M.rmatvec(vector)
    vector[:] = 0  # as solvers go on in their memory
    assert np.array_equal(info.value.vector, V12)


def test_a_callback_sees_each_product_and_what_it_raises_stops_the_solver():
    A = gram()
    quotients = []

    def look(record):
        quotients.append(record.vector @ record.product / (record.vector @ record.vector))
        if record.matvecs == 4:
            raise StopIteration("enough")

    M = linops.monitor(A, progress=False, callback=look)
    with pytest.raises(StopIteration, match="enough"):
        eigsh(M, k=1, v0=V8)
    assert (M.matvecs, len(quotients)) == (4, 4)
    assert quotients[0] == pytest.approx(V8 @ (A @ V8) / 8, rel=1e-5)
    vector = M.record.vector
    assert vector @ (A @ vector) / (vector @ vector) == pytest.approx(quotients[-1], rel=1e-5)
    M.record._callback = None
    M @ V8
    assert M.matvecs == 5


def test_nothing_is_held_between_callbacks():
    M = linops.monitor(gram(), progress=False, callback=lambda record: None)
    M @ V8
    assert M.record.vector is M.record.product is None


def test_an_interruption_passes_and_the_record_is_true():
    calls = []

    def product(v):
        calls.append(v)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return v

    M = linops.monitor(LinearOperator((8, 8), product, dtype=np.float32), progress=False)
    with pytest.raises(KeyboardInterrupt):
        [M @ (scale * V8) for scale in range(1, 9)]
    assert (M.matvecs, M.record.vector.tolist()) == (2, [3.0] * 8)
    M @ V8
    assert M.matvecs == 3


def test_a_product_that_is_refused_does_not_count():
    M = linops.monitor(linops.Matrix(np.full((2, 2), 3e38, np.float32)), progress=False)
    with pytest.raises(FloatingPointError, match="a product with <2x2 Matrix with dtype=float32> has NaN"):
        M @ np.ones(2, np.float32)
    with pytest.raises(ValueError, match="got an array of shape"):
        M @ np.ones(3, np.float32)
    assert (M.matvecs, M.seconds) == (0, 0)


def test_what_runs_on_the_device_reports():
    heard = []
    M = linops.monitor(gram(), progress=False, max_matvecs=20, callback=lambda record: heard.append(record.matvecs))
    assert not M.report(8, "1 of 3 converged", seconds=4.0)
    assert not M.report(0)
    assert (M.seconds, M.record.median, M.record.remaining) == (4.0, 0.5, 12)
    assert M.report(10, rmatvecs=4)  # True: to be stopped
    assert (M.matvecs, M.rmatvecs, heard, M.record.remaining) == (18, 4, [8, 8, 18], 0)


def test_estimators_keep_to_a_limit():
    """Of a product with M in MᵀM there are two, so that a limit is half as many."""
    A = linops.Matrix(np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32))
    M = linops.monitor(A, progress=False, max_matvecs=46)
    assert linops.estimate.trace(M, jax.random.key(0), num_matvecs=40, method="hutchinson").matvecs == 40
    with pytest.raises(ValueError, match="got num_matvecs=40 and a monitor that allows 3, expected at least 4"):
        linops.estimate.trace(M.T @ M, jax.random.key(0), num_matvecs=40, method="xnystrace")
    assert linops.estimate.trace(M.T @ M, jax.random.key(0), num_matvecs=40, method="hutchinson").matvecs == 3
    assert (M.matvecs, M.rmatvecs, M.record.remaining) == (43, 3, 0)
    G = linops.monitor(A.T @ A, progress=False, max_matvecs=1000)
    assert linops.estimate.trace(G, jax.random.key(0), rtol=1e-6).standard_error == 0  # as without a limit
    before = G.matvecs
    linops.precondition.nystrom(G, shift=1.0, rank=7)
    assert G.matvecs == before + 7
    few = linops.monitor(A.T @ A, progress=False, max_matvecs=20)
    linops.precondition.nystrom(few, shift=1e-3)
    assert few.matvecs == 20  # a rank of 16, three to see what is left of A, and one more
    with pytest.raises(ValueError, match=r"nystrom got rank=7 .*, and no more than its monitors allow"):
        linops.precondition.nystrom(few, shift=1.0, rank=7)
    with pytest.raises(ValueError, match="whose monitors allow no more products, expected one at least"):
        linops.precondition.nystrom(few, shift=1.0)
    with pytest.raises(ValueError, match="spectral_density got num_matvecs=5, expected those of two probes at least"):
        linops.estimate.spectral_density(linops.monitor(A.T @ A, progress=False, max_matvecs=5), jax.random.key(0))


def test_products_of_an_inverse_count():
    """Those of its dense factor, and of the solves of a dense matrix; where too few are left there is no factor."""
    A = linops.Matrix(np.eye(6, dtype=np.float32) + 1)
    M = linops.monitor(A, progress=False)
    inverse = linops.inverse(M)
    assert M.matvecs == 6
    inverse @ np.ones(6, np.float32)
    assert M.matvecs == 7
    assert linops.inverse(linops.monitor(A, progress=False, max_matvecs=3)).guess is None
    by_rows = linops.monitor(A, progress=False)
    np.testing.assert_allclose(linops.inverse(by_rows, method="cg").toarray(), inverse.toarray(), atol=1e-5)
    assert by_rows.matvecs >= 12


def test_of_products_in_programs_it_hears_afterwards():
    M = linops.monitor(gram(), progress=False)
    for call, matvecs in (
        (lambda: linops.estimate.trace(M, jax.random.key(0), num_matvecs=4), 4),
        (lambda: linops.estimate.quadratic_form(jnp.exp, M, V8), 8),
        (lambda: linops.linalg.expm_multiply(M / 10, V8), 8),
    ):
        before = M.matvecs
        call()
        assert M.matvecs - before == matvecs


def test_algorithms_on_the_device_end_at_a_limit():
    """With what they have, of steps that fit what is left; a step is five products or so, a start one for each pair."""
    line = linops.Diagonal(np.linspace(1, 2, 20_000).astype(np.float32))
    M = linops.monitor(line, progress=False, max_matvecs=500)
    with pytest.raises(linops.linalg.NoConvergence, match=r"0 of 3 eigenvalues .* converged: it was stopped"):
        linops.linalg.eigsh(M, k=3, which="SA", ncv=20)
    assert 495 <= M.matvecs <= 508
    A = linops.Matrix(RNG.normal(size=(60, 60)).astype(np.float32))
    M = linops.monitor(A, progress=False, max_matvecs=15)
    with pytest.raises(linops.linalg.NoConvergence, match=r"it was stopped; .* give a monitor a larger max_matvecs"):
        linops.linalg.expm_multiply(M.T, np.ones((60, 2), np.float32))
    assert (M.matvecs, M.rmatvecs) == (0, 20)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"A": TALL}, TypeError, "expected an operator of linops or SciPy, or a sparse matrix: write linops.Matrix"),
        ({"max_matvecs": -1}, ValueError, "monitor got max_matvecs=-1, expected a number of products >= 0"),
        ({"max_matvecs": True}, ValueError, "monitor got max_matvecs=True"),
        ({"max_matvecs": 1.5}, ValueError, "monitor got max_matvecs=1.5"),
        ({"callback": 3}, TypeError, "monitor got callback=3, expected a function of the record, or None"),
    ],
)
def test_arguments_that_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        linops.monitor(**{"A": tall(), **arguments})


# Copies and transformations.


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda A: pickle.loads(pickle.dumps(A)), lambda A: jax.tree.map(jnp.copy, A)]
)
def test_what_comes_out_of_copies_counts_anew(way):
    M = linops.monitor(tall(), progress=False, max_matvecs=2)
    M @ V8
    other = way(M)
    for _ in range(3):
        assert np.array_equal(other @ V8, tall() @ V8)
    assert (M.matvecs, other.matvecs, other.record.remaining) == (1, 3, math.inf)


def test_copies_of_foreign_ones_count_anew():
    M = linops.monitor(scipy.sparse.eye_array(8), progress=False, max_matvecs=2)
    other = copy.deepcopy(M)
    other @ V8
    assert (M.matvecs, other.matvecs) == (0, 1)


def test_monitors_share_programs_and_none_is_kept():
    traced = []

    @jax.jit
    def power(M, v):
        traced.append(1)
        return jax.lax.fori_loop(0, 3, lambda _, v: M @ v, v), M

    for _ in range(2):
        M = linops.monitor(gram(), progress=False)
        _, out = power(M, V8)
        out @ V8
        assert M.matvecs == 0
    assert len(traced) == 1
    records = [weak for weak in gc.get_objects() if type(weak).__name__ == "Tally" and weak is M.record]
    assert len(records) == 1


# Bars.


def last(text):
    """What a terminal shows of a line that was written over."""
    assert text.endswith("\n")
    return text.rstrip("\n").split("\r")[-1].rstrip()


def test_nothing_is_shown_where_there_is_no_terminal(monkeypatch):
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        M = linops.monitor(tall())
        M @ V8
        M.report(1, "text")
        M.close()
        assert not stream or not stream.getvalue()


def test_the_line_tells_count_goal_rate_and_text(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with linops.monitor(tall(), max_matvecs=50) as M:
        M @ V8
        assert terminal.getvalue().startswith("\r0 of 50 products, 0.0 s, 0 per second")  # before the first compiles
        M.T @ V12
        M.report(5, "7 of 10 converged, worst residual 3e-05")
    shown = last(terminal.getvalue())
    assert shown.startswith("7 of 50 products, ")
    assert shown.endswith("per second, 7 of 10 converged, worst residual 3e-05")
    assert max(map(len, terminal.getvalue().rstrip("\n").split("\r"))) == 89
    length = len(terminal.getvalue())
    M @ V8  # after its end: counted, and shown no more
    assert (M.matvecs, len(terminal.getvalue())) == (7, length)


def test_the_line_is_written_over_now_and_then_and_cut_to_the_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr("linops.progress.WRITE_SECONDS", 0.0)
    line = Line(None, 3)
    line.set_postfix_str("a text that is too long for it", refresh=False)
    line.update(2)
    monkeypatch.setattr("linops.progress.WRITE_SECONDS", 1e9)
    line.update(4)
    line.close()
    lines = terminal.getvalue().rstrip("\n").split("\r")[1:]
    assert [text.partition(" ")[0] for text in lines] == ["3", "5", "9"]
    assert {len(text) for text in lines} == {29}


def raising(error, condition, result=None):
    """A function that raises where a condition on its argument holds."""

    def function(value):
        if condition(value):
            raise error
        return result

    return function


def second(record):
    return record.matvecs == 2


STOPS = {
    "limit": (linops.MatvecLimit, 1, lambda: linops.monitor(tall(), max_matvecs=1)),
    "callback": (KeyboardInterrupt, 2, lambda: linops.monitor(tall(), callback=raising(KeyboardInterrupt, second))),
    "product": (
        KeyboardInterrupt,
        1,
        lambda: linops.monitor(
            LinearOperator((12, 8), raising(KeyboardInterrupt, lambda v: v[0] == 2, V12), dtype=np.float32)
        ),
    ),
}


@pytest.mark.parametrize("stop", STOPS)
def test_what_stops_a_product_ends_the_line_and_the_next_opens_another(stop, terminal):
    error, made, make = STOPS[stop]
    M = make()
    with pytest.raises(error):
        [M @ (scale * V8) for scale in (1, 2)]
    shown = terminal.getvalue()
    assert last(shown).startswith(f"{made} ")
    M.record.max_matvecs = None
    M @ V8
    M.close()
    assert last(terminal.getvalue()[len(shown) :]).startswith(f"{made + 1} products")


def test_the_line_ends_with_the_operator(terminal):
    M = linops.monitor(tall())
    M @ V8
    assert not terminal.getvalue().endswith("\n")
    del M
    collect()
    assert last(terminal.getvalue()).startswith("1 products")


def test_tqdm_is_used_where_it_is_installed(terminal, monkeypatch):
    """As a stand-in says, which has its names; the real one below."""
    calls = []

    class Bar:
        def __init__(self, **options):
            calls.append(("open", options["total"], options["initial"]))

        def set_postfix_str(self, text, refresh):
            calls.append((text, refresh))

        def update(self, count):
            calls.append(count)

        def close(self):
            calls.append("close")

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    with linops.monitor(tall(), max_matvecs=9) as M:
        M @ np.ones((8, 3), np.float32)
        M.report(5, "text")
        with pytest.raises(linops.MatvecLimit):
            M @ np.ones((8, 2), np.float32)
        M @ V8
    assert calls == [("open", 9, 0), 3, ("text", False), 5, "close", ("open", 9, 8), 1, "close"]
    assert not terminal.getvalue()


def test_the_bar_of_tqdm(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with linops.monitor(tall(), max_matvecs=9) as M:
        M @ np.ones((8, 3), np.float32)
        M.report(5, "worst residual 3e-05")
    shown = last(sys.stderr.getvalue())
    assert "8/9" in shown
    assert "worst residual 3e-05" in shown


def test_a_record_reads_as_a_line():
    M = linops.monitor(tall(), progress=False)
    assert str(M.record) == "0 matvecs, 0 rmatvecs: 0 s in all"
    assert math.isnan(M.record.median)
    M @ V8
    M.rmatvec(V12)
    assert repr(M.record).startswith("<Tally: 1 matvecs, 1 rmatvecs: ")
    assert "s in products (median " in repr(M.record)
