"""The SciPy contract: every entry point of SciPy that takes a LinearOperator, by every operator that suits it.

`ENTRIES` are the entry points; what they are given are the operators of the zoo that are made for solvers, and
`PROBLEMS`. A kind says what suits what. Every cell of the table compares with the dense matrix, which JAX makes in
float64, and with what `numpy.linalg` and `scipy.linalg` make of it. To see the table:

    python tests/test_scipy_contract.py
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import operators
import pytest
import scipy.linalg
import scipy.linalg.interpolative as interpolative
import scipy.optimize
import scipy.sparse.linalg as sla
from operators.solvers import (
    H_,
    J_,
    SOLUTION,
    TARGET,
    TREE,
    WEIGHTS,
    N,
    as_,
    convex,
    half_square,
    jacobian,
    loss_of_tree,
    of_tree,
    shifted_gram,
    soft,
    tall,
    tree,
)

import linops

DTYPES = ("float32", "float64")
OPERATORS = operators.where(made_for="solvers")

DEFINITE = {"definite"}
SYMMETRIC = {"definite", "indefinite"}
FORWARD = {"definite", "square"}  # eigenvalues in the right half plane
ANY_SQUARE = {"definite", "indefinite", "square"}
RECTANGULAR = {"rectangular"}
REGULAR = {"definite", "indefinite", "square", "rectangular"}
LOW_RANK = {"low rank", "low rank, square"}


# Problems whose solvers ask for operators at points of their own: name -> (kind, ...) with what each kind needs.


@dataclasses.dataclass(frozen=True)
class Objective:
    """Minimize f; `hess` is the operator at x, `dense` its matrix."""

    f: Callable
    hess: Callable
    dense: Callable
    kind: str = "objective"


@dataclasses.dataclass(frozen=True)
class Residual:
    """Minimize |f(v)|^2; `jac` is the operator at x, the Jacobian of f."""

    f: Callable
    jac: Callable
    kind: str = "residual"

    @property
    def dense(self):
        return J_(self.f)


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Minimize `f` where c(v) = level; `hess` is the Hessian of w . c at x."""

    f: Callable
    c: Callable
    hess: Callable
    kind: str = "constraint"

    @property
    def dense(self):
        return lambda x, w: H_(lambda v: w @ self.c(v))(x)


def residual(v):
    """Zero at SOLUTION."""
    return tall(v) - tall(as_(SOLUTION, v))


def sphere(v):
    """Two values, both curved."""
    return jnp.stack([jnp.sum(v**2), jnp.sum(jnp.sin(v[:5])) + v[6] ** 2])


def off_target(v):
    return tall(v) - as_(TARGET, v)


PROBLEMS = {
    "Hessian(f, x)": Objective(
        convex,
        lambda x: linops.Hessian(of_tree(convex), tree(x)),
        H_(convex),
    ),
    "GaussNewton(f, x)": Objective(
        lambda v: half_square(residual(v)),
        lambda x: linops.GaussNewton(of_tree(residual, **TREE), tree(x)),
        lambda x: J_(residual)(x).T @ J_(residual)(x),
    ),
    "GaussNewton(f, x, loss)": Objective(
        lambda v: soft(residual(v)),
        lambda x: linops.GaussNewton(of_tree(residual, **TREE), tree(x), loss_of_tree(soft)),
        lambda x: J_(residual)(x).T @ H_(soft)(residual(x)) @ J_(residual)(x),
    ),
    "J(x).T @ J(x) + lam * I": Objective(
        lambda v: half_square(residual(v)) + half_square(v - as_(SOLUTION, v)) / 4,
        lambda x: shifted_gram(residual, x, 0.25),
        lambda x: J_(residual)(x).T @ J_(residual)(x) + jnp.eye(N) / 4,
    ),
    "Jacobian(f, x)": Residual(
        off_target,
        lambda x: linops.Jacobian(off_target, x),
    ),
    "Jacobian(tree f, tree x)": Residual(
        off_target,
        lambda x: jacobian(off_target, x),
    ),
    "Diagonal @ Jacobian(f, x)": Residual(
        lambda v: as_(WEIGHTS, v) * off_target(v),
        lambda x: linops.Diagonal(as_(WEIGHTS, x)) @ linops.Jacobian(off_target, x),
    ),
    "Hessian(f, x, weights=v)": Constraint(
        convex,
        sphere,
        lambda x, w: linops.Hessian(sphere, x, weights=w),
    ),
    "Hessian(f, tree x, weights=v)": Constraint(
        convex,
        sphere,
        lambda x, w: linops.Hessian(of_tree(sphere), tree(x), weights=w),
    ),
}


def exact(f):
    """A function of vectors evaluated in float64 whatever the test: what references are made of."""
    f = jax.jit(f)

    def evaluate(*arguments):
        with jax.enable_x64(True):
            return np.asarray(f(*(jnp.asarray(a, jnp.float64) for a in arguments)))

    return evaluate


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """An operator, and the dense float64 matrix that it has to act as."""

    name: str
    dtype: np.dtype
    A: sla.LinearOperator
    dense: np.ndarray

    @classmethod
    @functools.cache
    def of(cls, name, dtype):
        return cls(name, np.dtype(dtype), *operators.build(name, np.dtype(dtype).type))

    @property
    def rtol(self):
        """What the solvers are asked for: 1e-5 in float32, 2e-14 in float64."""
        return 100 * float(np.finfo(self.dtype).eps)

    @functools.cached_property
    def condition(self):
        return np.linalg.cond(self.dense)

    @functools.cached_property
    def norm(self):
        return np.linalg.norm(self.dense, 2)

    @functools.cached_property
    def b(self):
        return np.random.default_rng(1).normal(size=self.dense.shape[0]).astype(self.dtype)

    @functools.cached_property
    def inverse_diagonal(self):
        """A preconditioner, itself one of ours."""
        return linops.Diagonal((1 / np.diag(self.dense)).astype(self.dtype))

    def start(self, k=None):
        size = self.dense.shape[1] if k is None else (self.dense.shape[1], k)
        return np.random.default_rng(2).normal(size=size).astype(self.dtype)

    def shift(self):
        """A number inside the spectrum, and the three eigenvalues that are nearest."""
        values = np.linalg.eigvalsh(self.dense)
        sigma = (2 * values[8] + values[9]) / 3
        return sigma, values[np.argsort(abs(values - sigma))][:3]

    def close(self, got, want, slack=4.0):
        """`got` is `want` up to `slack` times the tolerance of the dtype."""
        assert np.shape(got) == np.shape(want)
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error <= slack * self.rtol, f"relative error {error:.1e}, expected {slack * self.rtol:.1e}"

    def solved(self, x, slack=4.0):
        """Check A x = b, in the sense of least squares and of the smallest norm; the condition number is granted."""
        condition = self.condition if self.dense.shape[0] == self.dense.shape[1] else self.condition**2
        self.close(x, np.linalg.lstsq(self.dense, self.b, rcond=None)[0], slack * condition)

    def eigenpairs(self, values, vectors, want, slack=4.0):
        """`want` are the values expected, in any order; each vector belongs to its value, and they are independent."""
        self.close(np.sort_complex(values), np.sort_complex(want), slack)
        assert np.linalg.norm(vectors, axis=0) == pytest.approx(np.ones(len(want)), abs=slack * self.rtol)
        assert np.linalg.norm(self.dense @ vectors - vectors * values, 2) <= slack * self.rtol * self.norm
        assert np.linalg.matrix_rank(vectors, tol=1e-2) == len(want)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A function to minimize in one dtype, and operators of its derivatives, for vectors that come from SciPy."""

    spec: object
    dtype: np.dtype

    @classmethod
    @functools.cache
    def of(cls, name, dtype):
        return cls(PROBLEMS[name], np.dtype(dtype))

    @property
    def tol(self):
        """The gradient asked for. In float32 it is what the rounding of f, of size one, leaves: 1e-3; else 1e-8."""
        return 4 * float(np.finfo(self.dtype).eps) ** 0.5

    start = np.zeros(N)

    def at(self, x):
        return jnp.asarray(x.astype(self.dtype))

    def evaluate(self, f):
        f = jax.jit(f)
        return lambda x: np.asarray(f(self.at(x)), np.float64)

    @functools.cached_property
    def f(self):
        return self.evaluate(self.spec.f)

    @functools.cached_property
    def gradient(self):
        return self.evaluate(jax.grad(self.spec.f))

    @functools.cached_property
    def dense(self):
        return exact(self.spec.dense)

    def operator(self, make):
        """`make` as SciPy calls it; what it makes is checked at each point that SciPy asks for."""
        probe = np.random.default_rng(7).normal(size=N).astype(self.dtype)

        def at(x, *multipliers):
            A = make(self.at(x), *multipliers)
            want = self.dense(x, *multipliers) @ probe
            got = A @ probe
            assert got.dtype == A.dtype == self.dtype
            assert np.linalg.norm(got - want) <= self.tol * (1e-10 + np.linalg.norm(want))
            return A

        return at

    def solved(self, result, want, curvature, slack=2):
        """The solution is right to what its gradient, of size tol, grants; Newton's method takes few steps to it."""
        assert result.success
        assert result.nfev <= 25
        error, granted = np.linalg.norm(result.x - want), slack * self.tol / curvature
        assert error <= granted, f"error {error:.1e}, expected {granted:.1e}"


@functools.cache
def minimizer(f):
    """The minimizer of f, by Newton's method in float64, and the smallest eigenvalue of the Hessian there."""
    gradient, hessian = exact(jax.grad(f)), exact(jax.hessian(f))
    x = SOLUTION
    for _ in range(20):
        x = x - np.linalg.solve(hessian(x), gradient(x))
    assert np.linalg.norm(gradient(x)) < 1e-12
    return x, np.linalg.eigvalsh(hessian(x))[0]


def boxed_minimizer(f, bound):
    """The minimizer of f where |x_i| <= bound, by Newton's method in float64 on the entries that are not held."""
    gradient, hessian = exact(jax.grad(f)), exact(jax.hessian(f))
    x = np.clip(minimizer(f)[0], -bound, bound)
    for _ in range(20):
        g = gradient(x)
        free = (abs(x) < bound) | (g * x > 0)
        step = np.zeros(N)
        step[free] = np.linalg.solve(hessian(x)[np.ix_(free, free)], -g[free])
        x = np.clip(x + step, -bound, bound)
    assert 0 < free.sum() < N
    assert np.linalg.norm(step) < 1e-12
    return x


@functools.cache
def constrained(f, c, level):
    """The minimizer of f where c(x) = level, by Newton's method on the Lagrangian, its multipliers, and a curvature."""
    gradient, jacobian = exact(jax.grad(f)), exact(jax.jacobian(c))
    hessian = exact(lambda x, w: jax.hessian(lambda v: f(v) + w @ c(v))(x))
    x, w = minimizer(f)[0], np.zeros(len(level))
    for _ in range(50):
        J, zero = jacobian(x), np.zeros((len(w), len(w)))
        system = np.block([[hessian(x, w), J.T], [J, zero]])
        step = np.linalg.solve(system, -np.concatenate([gradient(x) + J.T @ w, exact(c)(x) - level]))
        x, w = x + step[: len(x)], w + step[len(x) :]
    assert np.linalg.norm(step) < 1e-12
    tangent = scipy.linalg.null_space(jacobian(x))
    curvature = np.linalg.eigvalsh(tangent.T @ hessian(x, w) @ tangent)[0]
    assert curvature > 0
    return x, w, curvature


# Entry points.


@dataclasses.dataclass(frozen=True)
class Entry:
    run: Callable
    kinds: frozenset
    marks: tuple
    float64_only: bool


ENTRIES = {}

# SciPy's solver hands float64 vectors to a float32 operator, which says so.
NARROWS = pytest.mark.filterwarnings("ignore:.* is narrowed to float32:linops.PrecisionWarning")
# SciPy's lsmr starts from the largest float64 as a minimum, in the dtype of the operator.
OVERFLOWS = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


def entry(kinds, name, *marks, float64_only=False):
    """Register an entry point of SciPy for operators of these kinds."""

    def register(run):
        ENTRIES[name] = Entry(run, frozenset(kinds), marks, float64_only)
        return run

    return register


def krylov(name, kinds, *, loose=1, **options):
    """Register a solver of A x = b, and the same with a preconditioner."""
    solver = getattr(sla, name)

    def run(case, **preconditioner):
        x, info = solver(case.A, case.b, rtol=loose * case.rtol, maxiter=200, **options, **preconditioner)
        assert info == 0
        case.solved(x, 4 * loose)

    entry(kinds, name, NARROWS)(run)
    roles = ("M1", "M2") if name == "qmr" else ("M",)

    @entry(DEFINITE, f"{name}, {'= '.join(roles)}=", NARROWS)
    def _(case):
        half = linops.Identity(len(case.b)) / 2
        # SciPy's tfqmr stops at a wrong solution with a preconditioner that is no multiple of the identity.
        first = half if name == "tfqmr" else case.inverse_diagonal
        run(case, **dict(zip(roles, (first, half), strict=False)))


krylov("cg", DEFINITE)
krylov("cgs", FORWARD, loose=10)  # its residuals, and those of bicg, lose digits on the way
krylov("bicg", FORWARD, loose=10)
krylov("bicgstab", FORWARD)
krylov("gmres", ANY_SQUARE)
krylov("lgmres", ANY_SQUARE)
krylov("minres", SYMMETRIC)
krylov("qmr", FORWARD)
krylov("gcrotmk", ANY_SQUARE)
krylov("tfqmr", FORWARD)


@entry(REGULAR, "lsqr", NARROWS)
def _(case):
    x, stop, *_ = sla.lsqr(case.A, case.b, atol=case.rtol, btol=case.rtol)
    assert stop in (1, 2)
    case.solved(x)


@entry(REGULAR, "lsmr", NARROWS, OVERFLOWS)
def _(case):
    x, stop, *_ = sla.lsmr(case.A, case.b, atol=case.rtol, btol=case.rtol, maxiter=200)
    assert stop in (1, 2)
    case.solved(x)


@entry(ANY_SQUARE, "eigs")
def _(case, k=4):
    values = np.linalg.eigvals(case.dense)
    want = values[np.argsort(-abs(values))]
    k -= np.isclose(want[k - 1], want[k].conj())  # a conjugate pair is taken whole
    case.eigenpairs(*sla.eigs(case.A, k, v0=case.start()), want[:k])


@entry(SYMMETRIC, "eigs, sigma=", NARROWS)
def _(case):
    # In float32 SciPy inverts by a GMRES to a thousand times the machine precision.
    sigma, want = case.shift()
    values, vectors = sla.eigs(case.A, 3, sigma=sigma, v0=case.start(), tol=case.rtol)
    case.eigenpairs(values, vectors, want, slack=20)


@entry(SYMMETRIC, "eigsh")
def _(case):
    values = np.linalg.eigvalsh(case.dense)
    want = values[np.argsort(-abs(values))][:4]
    case.eigenpairs(*sla.eigsh(case.A, 4, v0=case.start()), want)


@entry(SYMMETRIC, "eigsh, which=SA")
def _(case):
    want = np.linalg.eigvalsh(case.dense)[:3]
    case.eigenpairs(*sla.eigsh(case.A, 3, which="SA", v0=case.start()), want)


@entry(SYMMETRIC, "eigsh, sigma=", NARROWS)
def _(case):
    sigma, want = case.shift()
    values, vectors = sla.eigsh(case.A, 3, sigma=sigma, v0=case.start(), tol=case.rtol)
    case.eigenpairs(values, vectors, want, slack=20)


@entry(SYMMETRIC, "eigsh, sigma= OPinv=", NARROWS)
def _(case):
    sigma, want = case.shift()
    inverse = linops.Matrix(np.linalg.inv(case.dense - sigma * np.eye(len(case.b))).astype(case.dtype))
    case.eigenpairs(*sla.eigsh(case.A, 3, sigma=sigma, OPinv=inverse, v0=case.start()), want)


@entry(DEFINITE, "eigsh, M= Minv=", NARROWS)
def _(case):
    mass = 1 + np.arange(len(case.b)) / len(case.b)
    M, Minv = (linops.Diagonal(d.astype(case.dtype)) for d in (mass, 1 / mass))
    values, vectors = sla.eigsh(case.A, 3, M=M, Minv=Minv, v0=case.start())
    case.close(np.sort(values), scipy.linalg.eigh(case.dense, np.diag(mass), eigvals_only=True)[-3:])
    assert np.linalg.norm(case.dense @ vectors - mass[:, None] * vectors * values, 2) <= 10 * case.rtol * case.norm


@entry(DEFINITE, "lobpcg, largest", NARROWS)
def _(case):
    want = np.linalg.eigvalsh(case.dense)[-3:]
    found = sla.lobpcg(case.A, case.start(3), tol=case.rtol * case.norm, maxiter=200)
    case.eigenpairs(*found, want)


@entry(SYMMETRIC, "lobpcg, smallest", NARROWS)
def _(case):
    want = np.linalg.eigvalsh(case.dense)[:3]
    # Half of what is asserted: SciPy warns where what it computes anew at the end is a little beyond.
    found = sla.lobpcg(case.A, case.start(3), tol=case.rtol * case.norm / 2, maxiter=200, largest=False)
    case.eigenpairs(*found, want)


@entry(DEFINITE, "lobpcg, B= M=", NARROWS)
def _(case):
    mass = 1 + np.arange(len(case.b)) / len(case.b)
    values, vectors = sla.lobpcg(
        case.A,
        case.start(3),
        B=linops.Diagonal(mass.astype(case.dtype)),
        M=case.inverse_diagonal,
        tol=4 * case.rtol * case.norm,  # B is up to 2, and what rounding leaves of the residual grows with it
        maxiter=200,
        largest=False,
    )
    case.close(np.sort(values), scipy.linalg.eigh(case.dense, np.diag(mass), eigvals_only=True)[:3])
    assert np.linalg.norm(case.dense @ vectors - mass[:, None] * vectors * values, 2) <= 10 * case.rtol * case.norm


def singular_values(solver):
    @entry(REGULAR, f"svds, {solver}", NARROWS)
    def _(case):
        tol = case.rtol**0.5 * case.norm if solver == "lobpcg" else 0  # its square, or the best
        U, s, Vt = sla.svds(case.A, 3, solver=solver, tol=tol, maxiter=200, rng=np.random.default_rng(3))
        case.close(np.sort(s), np.linalg.svd(case.dense, compute_uv=False)[2::-1], slack=20)
        # propack stops by the singular values, which are twice as precise as the vectors.
        residual = case.norm * (20 * case.rtol if solver != "propack" else case.rtol**0.5)
        assert np.linalg.norm(case.dense @ Vt.T - U * s, 2) <= residual
        assert np.linalg.norm(case.dense.T @ U - Vt.T * s, 2) <= residual
        case.close(U.T @ U, np.eye(3), slack=20)


for solver in ("arpack", "lobpcg", "propack"):
    singular_values(solver)


@entry(ANY_SQUARE | {"low rank, square"}, "expm_multiply", NARROWS)
def _(case):
    B = np.stack([case.b, case.b[::-1]], axis=1)
    small = case.A / 4  # of a norm about 2: the exponential is not dominated by one eigenvector
    for block in (case.b, B):
        got = sla.expm_multiply(small, block, traceA=np.trace(case.dense) / 4)
        case.close(got, scipy.linalg.expm(case.dense / 4) @ block)
    steps = sla.expm_multiply(small, case.b, start=0, stop=1, num=3, traceA=np.trace(case.dense) / 4)
    case.close(steps, np.stack([scipy.linalg.expm(t * case.dense / 4) @ case.b for t in (0, 0.5, 1)]))


@entry(ANY_SQUARE | {"low rank, square"}, "onenormest", NARROWS)
def _(case):
    np.random.seed(0)  # noqa: NPY002 - what onenormest draws from
    exact = np.linalg.norm(case.dense, 1)
    estimate, v, w = sla.onenormest(case.A, compute_v=True, compute_w=True)
    case.close(w, case.dense @ v)
    case.close(estimate, np.linalg.norm(w, 1) / np.linalg.norm(v, 1))
    assert exact / 2 <= estimate <= exact * (1 + case.rtol)
    case.close(sla.onenormest(case.A, t=len(case.b)), exact)


@entry(ANY_SQUARE | {"low rank, square"}, "funm_multiply_krylov", NARROWS)
def _(case):
    got = sla.funm_multiply_krylov(scipy.linalg.expm, case.A, case.b, t=0.25, rtol=case.rtol)
    case.close(got, scipy.linalg.expm(case.dense / 4) @ case.b)


@entry(SYMMETRIC, "funm_multiply_krylov, hermitian", NARROWS)
def _(case):
    got = sla.funm_multiply_krylov(scipy.linalg.cosm, case.A, case.b, assume_a="hermitian", rtol=case.rtol)
    case.close(got, scipy.linalg.cosm(case.dense) @ case.b, slack=10)


# interpolative is written for float64, and refuses every operator of float32, as it does arrays.


@entry(LOW_RANK, "interp_decomp, k", float64_only=True)
def _(case):
    k = np.linalg.matrix_rank(case.dense)
    idx, proj = interpolative.interp_decomp(case.A, k, rng=np.random.default_rng(4))
    case.close(interpolative.reconstruct_matrix_from_id(case.dense[:, idx[:k]], idx, proj), case.dense, slack=10)


@entry(LOW_RANK, "interp_decomp, eps", float64_only=True)
def _(case):
    k, idx, proj = interpolative.interp_decomp(case.A, case.rtol, rng=np.random.default_rng(4))
    assert k == np.linalg.matrix_rank(case.dense)
    case.close(interpolative.reconstruct_matrix_from_id(case.dense[:, idx[:k]], idx, proj), case.dense, slack=10)


@entry(REGULAR | LOW_RANK, "interpolative.svd, k", float64_only=True)
def _(case):
    k = np.linalg.matrix_rank(case.dense)
    U, s, V = interpolative.svd(case.A, k, rng=np.random.default_rng(4))
    case.close(s, np.linalg.svd(case.dense, compute_uv=False)[:k], slack=10)
    case.close(U * s @ V.T, case.dense, slack=10)


@entry({"low rank, square"}, "interpolative.svd, eps", float64_only=True)
def _(case):
    # Of squares only: SciPy mixes up the sides of a rectangle here, whatever the operator.
    U, s, V = interpolative.svd(case.A, case.rtol, rng=np.random.default_rng(4))
    assert len(s) == np.linalg.matrix_rank(case.dense)
    case.close(U * s @ V.T, case.dense, slack=10)


@entry(LOW_RANK, "estimate_rank", float64_only=True)
def _(case):
    rank = interpolative.estimate_rank(case.A, case.rtol, rng=np.random.default_rng(4))
    assert rank - np.linalg.matrix_rank(case.dense) in (0, 1)  # SciPy stops one product after the last


@entry(REGULAR | LOW_RANK, "estimate_spectral_norm", float64_only=True)
def _(case):
    got = interpolative.estimate_spectral_norm(case.A, its=200, rng=np.random.default_rng(4))
    case.close(got, case.norm, slack=10)


@entry(REGULAR | LOW_RANK, "estimate_spectral_norm_diff", float64_only=True)
def _(case):
    other = case.dense + np.outer(case.dense[:, 0], case.dense[0]) / case.norm
    B = linops.Matrix(other.astype(case.dtype))
    got = interpolative.estimate_spectral_norm_diff(case.A, B, its=200, rng=np.random.default_rng(4))
    case.close(got, np.linalg.norm(case.dense - other, 2), slack=10)


@entry(REGULAR, "lsq_linear", NARROWS, OVERFLOWS)
def _(case):
    free = np.linalg.lstsq(case.dense, case.b, rcond=None)[0]
    options = {"tol": case.rtol, "lsmr_tol": case.rtol, "lsmr_maxiter": 200, "max_iter": 200}
    got = scipy.optimize.lsq_linear(case.A, case.b, bounds=(-100, 100), **options)
    assert got.success
    case.solved(got.x)
    bound = np.median(abs(free))
    want = scipy.optimize.lsq_linear(case.dense, case.b, bounds=(-bound, bound), method="bvls", tol=1e-15)
    got = scipy.optimize.lsq_linear(case.A, case.b, bounds=(-bound, bound), **options)
    assert got.success
    assert abs(got.x).max() <= bound
    case.close(case.dense @ got.x, case.dense @ want.x, slack=300)  # trf stops by the change of the cost


def minimizing(method, **tolerances):
    @entry({"objective"}, f"minimize, {method}, hess=", NARROWS)
    def _(problem):
        options = {name: problem.tol * scale for name, scale in tolerances.items()}
        hess = problem.operator(problem.spec.hess)
        x0 = problem.start
        got = scipy.optimize.minimize(problem.f, x0, method=method, jac=problem.gradient, hess=hess, options=options)
        problem.solved(got, *minimizer(problem.spec.f))


minimizing("Newton-CG", xtol=1)
minimizing("trust-ncg", gtol=1)
minimizing("trust-krylov", gtol=1)
minimizing("trust-constr", gtol=1, xtol=1e-3)


def least_squares(method):
    @entry({"residual"}, f"least_squares, {method}", NARROWS, OVERFLOWS)
    def _(problem):
        f = problem.spec.f

        def cost(v):
            return half_square(f(v))

        want, curvature = minimizer(cost)
        options = {"method": method, "ftol": None, "xtol": None, "gtol": problem.tol}
        options |= {
            "tr_solver": "lsmr",
            "tr_options": {"atol": problem.tol / 100, "btol": problem.tol / 100, "maxiter": 200},
        }
        jac = problem.operator(problem.spec.jac)
        got = scipy.optimize.least_squares(problem.f, problem.start, jac, **options)
        problem.solved(got, want, curvature)
        bound = np.quantile(abs(want), 0.8)
        bounds = (-bound, bound)
        got = scipy.optimize.least_squares(problem.f, problem.start, jac, bounds, **options)
        assert abs(got.x).max() <= bound
        problem.solved(
            got, boxed_minimizer(cost, bound), curvature, slack=10
        )  # trf weighs the gradient by the distance to the bounds


least_squares("trf")
least_squares("dogbox")


def constraining(form):
    @entry({"constraint"}, f"NonlinearConstraint, {form}", NARROWS)
    def _(problem):
        f, c, level = problem.spec.f, problem.spec.c, (2.0, 1.0)
        want, multipliers, curvature = constrained(f, c, level)
        free = form != "equality"
        constraint = scipy.optimize.NonlinearConstraint(
            problem.evaluate(c),
            np.where(free & (multipliers > 0), -np.inf, level),
            np.where(free & (multipliers < 0), np.inf, level),
            jac=problem.evaluate(jax.jacobian(c)),
            hess=problem.operator(problem.spec.hess),
        )
        got = scipy.optimize.minimize(
            problem.f,
            minimizer(f)[0],
            method="trust-constr",
            jac=problem.gradient,
            hess=lambda x: linops.Hessian(f, problem.at(x)),
            constraints=[constraint],
            options={"gtol": problem.tol, "xtol": problem.tol / 1000, "barrier_tol": problem.tol / 1000},
        )
        # The barrier of an inequality stays a little off the bound.
        problem.solved(got, want, curvature, slack=2 if form == "equality" else 20)


constraining("equality")
constraining("inequality")


# The table.


def cells():
    for name, an_entry in ENTRIES.items():
        for operator, kind in KINDS.items():
            for dtype in DTYPES:
                if kind in an_entry.kinds:
                    marks = an_entry.marks if dtype == "float32" else ()
                    yield pytest.param(name, operator, dtype, marks=marks, id=f"{name}-{operator}-{dtype}")


KINDS = {name: operators.ZOO[name].traits.solver for name in OPERATORS}
KINDS |= {name: problem.kind for name, problem in PROBLEMS.items()}
PASSED = {}


@pytest.fixture
def dtype(request):
    """The name of a dtype, in which JAX computes during the test."""
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(scope="module", autouse=True)
def table():
    """Print what passed, where the whole module was run."""
    yield
    wanted = [cell.values for cell in cells()]
    if not all(cell in PASSED for cell in wanted):
        return
    width = max(map(len, ENTRIES))
    columns = [chr(ord("A") + i) if i < 26 else chr(ord("a") + i - 26) for i in range(len(KINDS))]
    print("\n\nPassed: 32 = float32, 64 = float64; -- = SciPy takes float64 only, and says so.\n")
    print("\n".join(f"  {column}  {name}" for column, name in zip(columns, KINDS, strict=True)), "\n")
    print(" " * width, *(f"{column:5}" for column in columns))
    for name in ENTRIES:
        row = [" ".join(PASSED.get((name, operator, dtype), "  ") for dtype in DTYPES) for operator in KINDS]
        print(name.ljust(width), *row)
    print(f"\n{len(wanted)} cells")


@pytest.mark.covering("dtype")
@pytest.mark.parametrize(("name", "operator", "dtype"), list(cells()), indirect=["dtype"])
def test_entry_point(name, operator, dtype):
    """One cell: SciPy's solver with our operator finds what the dense matrix says."""
    an_entry = ENTRIES[name]
    PASSED[name, operator, dtype] = " x"
    case = (Case if operator in OPERATORS else Problem).of(operator, dtype)
    if an_entry.float64_only and dtype == "float32":
        with pytest.raises(ValueError, match="input must be float64"):
            an_entry.run(case)
        PASSED[name, operator, dtype] = "--"
    else:
        an_entry.run(case)
        PASSED[name, operator, dtype] = dtype[-2:]


@pytest.mark.filterwarnings("ignore:.* is narrowed to float32:linops.PrecisionWarning")
@pytest.mark.parametrize("dtype", DTYPES, indirect=True)
@pytest.mark.parametrize("operator", [name for name in OPERATORS if "scipy" not in name])  # whose sum is SciPy's own
def test_products(operator, dtype):
    """Products with every vector and block that SciPy sends are right, and keep the dtype and the shape of SciPy."""
    case = Case.of(operator, dtype)
    assert isinstance(case.A, sla.LinearOperator)
    assert case.A.shape == case.dense.shape
    assert case.A.dtype == case.dtype
    assert sla.aslinearoperator(case.A) is case.A
    for A, dense in ((case.A, case.dense), (case.A.T, case.dense.T), (case.A.H, case.dense.T)):
        for sent in ("int8", "float32", "float64"):
            V = (4 * np.random.default_rng(5).normal(size=(dense.shape[1], 3))).astype(sent)
            W = (4 * np.random.default_rng(6).normal(size=(dense.shape[0], 3))).astype(sent)
            products = [
                (product(v), dense @ v) for v in (V[:, 0], V[:, :1]) for product in (A.matvec, A.dot, A.__matmul__)
            ]
            products += [(product(V), dense @ V) for product in (A.matmat, A.dot, A.__matmul__)]
            products += [(A.rmatvec(W[:, 0]), dense.T @ W[:, 0]), (A.rmatmat(W), dense.T @ W)]
            for got, want in products:
                assert got.dtype == case.dtype
                assert got.flags.writeable
                case.close(got, want)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-qs", "--whole"]))
