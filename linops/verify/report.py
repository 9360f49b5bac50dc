"""The verification report of an operator: what it claims, tried on random vectors and on differences of f."""

import contextlib
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator

from linops.algebra.operator import Gram, Product, Scaled
from linops.algebra.sums import Sum
from linops.arrays import require_threads
from linops.derivatives.hessian import Hessian
from linops.derivatives.map import Derived
from linops.linear_map import LinearMap
from linops.program.missing import MissingRule
from linops.space import Space
from linops.verify.claims import CHECKS, derived
from linops.verify.differences import Comparison, Unavailable, paired
from linops.verify.values import Values, in_double, product, widened


def check(A, *, key=None, samples=3, rtol=None, f=None):
    """Verify an operator: whether products, adjoint, symmetry, derivatives and dtype are what it claims.

    Parameters
    ----------
    A : LinearOperator
        An operator of linops, or any of SciPy, for which the checks that need more are left out.
    key : JAX key or int, optional
        What the random vectors are drawn from; `jax.random.key(0)` by default.
    samples : int
        How many random vectors each check takes.
    rtol : float, optional
        The rounding error of a product relative to its norm, for sqrt(max(m, n)) = 1; by default 16 eps, of the
        coarsest dtype among A and the leaves of its factors' Spaces and points.
    f : callable, optional
        The Python function of x that A, a derivative, was made of, with its `args` bound. It is traced twice again,
        which finds a function that draws random numbers or reads changing state while it is traced.

    Returns
    -------
    Report
        True if all checks hold. It prints as a table; `raise_if_failed()` is for tests.

    Raises
    ------
    TypeError, ValueError
        Where A is no operator of two dimensions, or belongs to a jit, vmap or grad in progress, or there are no
        samples.

    Notes
    -----
    A check that presupposes another is left out where that one fails, so that a report names causes.

    Products that should be equal may differ by ``rtol sqrt(max(m, n)) |A| |v|`` in the Euclidean norm, inner products
    ``<w, A v>`` by ``rtol |A| |v| |w|``. The norm of A is the largest ``|A v| / |v|`` seen, summed over the terms of a
    sum and multiplied over the factors of a product. To both is added 16 times what products are seen to move when the
    last digits of v do, for what rounds within f. Source: Higham, Accuracy and Stability of Numerical Algorithms
    (2002), ch. 3, whose bound ``n eps |A| |v|`` for sums of n terms is ``sqrt(n) eps |A| |v|`` for rounding errors of
    random sign (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).

    Products by differences of the gradient (`Hessian(f, x, products="difference")`) are off by more than rounding: by
    their own estimate, which then is a line of the report, and takes the place of eps where it is larger.

    Derivatives are compared with central differences, in each row within the error estimate in `linops.differences`; of
    float32 operators in double precision as well, where their programs can be computed so. A positive
    semidefinite operator may have Ritz values down to minus the tolerance, of a few steps of Lanczos' method.

    Examples
    --------
    >>> report = check(linops.Hessian(lambda x: jnp.sum(x**3), np.array([1.0, 2.0], np.float32)))
    >>> bool(report)
    True
    >>> print(report)
    <2x2 Hessian with dtype=float32>: 11 checks hold, 0 fail, 3 not made
      dtype                   holds      ...
    """
    require_threads()
    _require_checkable(A, samples, f)
    key = _key(key)
    subject = Subject(A, key, samples, rtol, f)
    findings = {}
    for name, (run, needs) in CHECKS.items():
        spoiled = [need for need in needs if findings[need].holds is False or findings[need].spoiled]
        unmade = Finding(name, None, f"presupposes: {', '.join(spoiled)}", spoiled=True)
        findings[name] = unmade if spoiled else _find(name, run(subject))
    if subject.approximation:
        findings["approximate"] = _find("approximate", [subject.approximate()])
    return Report(repr(A), tuple(findings.values()), _relative_noise(subject), subject.eps)


ROUGHEST = 0.05  # error of products by differences, relative to their norm, that holds


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of one check: `holds` is None where it was not made, and `note` says why, or what failed."""

    name: str
    holds: bool | None
    note: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    spoiled: bool = False  # not made, since a check that it presupposes failed

    def __str__(self):
        result = {True: "holds", False: "FAILS", None: "-"}[self.holds]
        figures = "" if self.holds is None else f"{self.error:.1e} {'<=' if self.holds else '> '} {self.tolerance:.1e}"
        return f"  {self.name:<23} {result:<6} {figures:<19} {self.note}".rstrip()


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings of `check` on one operator; true if none fails.

    `noise` is the rounding error of products, relative to their norm, the largest that was seen, and `eps` the unit of
    rounding of the dtype, which it should be near: measured against the same product computed in double precision, or,
    where that cannot be, between A (c v) and c (A v). It is NaN where products fail.
    """

    operator: str
    findings: tuple[Finding, ...]
    noise: float
    eps: float

    @property
    def failed(self):
        """The findings that fail."""
        return tuple(finding for finding in self.findings if finding.holds is False)

    def __bool__(self):
        return not self.failed

    def __str__(self):
        held = sum(finding.holds is True for finding in self.findings)
        left_out = len(self.findings) - held - len(self.failed)
        head = f"{self.operator}: {held} checks hold, {len(self.failed)} fail, {left_out} not made"
        noise = f"  noise of products {self.noise:.1e} (eps {self.eps:.1e})"
        return "\n".join([head, *map(str, self.findings), noise])

    __repr__ = __str__

    def raise_if_failed(self):
        """Raise AssertionError with what failed, if anything did."""
        if self.failed:
            raise AssertionError("\n".join([f"{self.operator} is not what it claims:", *map(str, self.failed)]))


def _require_checkable(A, samples, f):
    if not isinstance(A, LinearOperator):
        multiplies = hasattr(A, "matvec") and hasattr(A, "shape")  # an operator of pylops, say
        remedy = (
            "pass scipy.sparse.linalg.aslinearoperator(A)"
            if multiplies
            else "wrap an array in linops.Matrix, a sparse matrix in scipy.sparse.linalg.aslinearoperator"
        )
        raise TypeError(f"check got {type(A).__name__}, expected an operator of linops or of SciPy: {remedy}")
    if len(A.shape) != 2:
        raise ValueError(f"check got an operator of shape {A.shape}, expected one matrix (m, n)")
    if not isinstance(samples, numbers.Integral) or samples < 1:
        raise ValueError(f"check got samples={samples!r}, expected a number of random vectors, at least one")
    if getattr(A, "_traced", False):
        raise TypeError(
            f"check got {A!r}, which belongs to a jit, vmap or grad in progress; expected arrays: check outside"
        )
    if f is not None and not isinstance(A, Derived):
        raise TypeError(f"check got f= with {A!r}, expected an operator made of f, such as a Jacobian; leave out f=")


def _key(key):
    if key is None or isinstance(key, numbers.Integral):
        return jax.random.key(key or 0)
    if not (isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"check got key={key!r}, expected an integer or a key of jax.random.key")
    return key


def _find(name, results):
    """The Finding of the Comparisons that a check yields."""
    made, reason = [], "not claimed"
    try:
        for comparison in results:
            made.append(comparison)  # noqa: PERF402 - those before an exception count
    except Unavailable as unavailable:
        reason = str(unavailable)
    except Exception as error:  # any at all: it is what the operator does
        made.append(Comparison(math.inf, 0, f"raised {type(error).__name__}: {error}"))
    if not made:
        return Finding(name, None, reason)
    failed = [comparison for comparison in made if not comparison.holds]
    worst = max(failed or made, key=lambda comparison: comparison.excess)
    note = worst.message if failed else next((c.remark for c in made if c.remark), "")
    return Finding(name, not failed, note, float(worst.error), float(worst.tolerance))


@dataclasses.dataclass(frozen=True)
class Subject:
    """An operator under examination, with its random vectors and its tolerances."""

    A: LinearOperator
    key: jax.Array
    samples: int
    given_rtol: float | None
    f: Callable | None

    eps = property(lambda self: _eps(self.A))
    rtol = property(lambda self: 16 * self.unit if self.given_rtol is None else self.given_rtol)
    unit = property(lambda self: max(self.eps, getattr(self.A, "_unit", 0.0), self.approximation))
    domain = property(lambda self: getattr(self.A, "domain", Space.flat(self.A.shape[1], _dtype(self.A))))
    codomain = property(lambda self: getattr(self.A, "codomain", Space.flat(self.A.shape[0], _dtype(self.A))))

    def draw(self, space, left=False):
        """NumPy vectors of a Space, other ones for the left side; fresh, since an operator may overwrite them."""
        keys = jax.random.split(jax.random.fold_in(self.key, int(left)), self.samples)
        return [np.array(space.ravel(space.draw(key))) for key in keys]

    @functools.cached_property
    def approximation(self):
        """The error of products by differences, the largest among A and its factors; 0 where there are none."""
        return max((H.product_error() for H in derived(self.A) if isinstance(H, Hessian)), default=0.0)

    def approximate(self):
        """That products by differences are near what they stand for."""
        message = "products by differences of the gradient change as the step is doubled"
        remedy = f"{message} by more than a few digits: scale the leaves of x to like sizes, and look for kinks of f"
        return Comparison(self.approximation, ROUGHEST, remedy, message)

    @property
    def rights(self):
        return self.draw(Space.flat(self.A.shape[1], _dtype(self.A)))

    @property
    def lefts(self):
        return self.draw(Space.flat(self.A.shape[0], _dtype(self.A)), left=True)

    @functools.cached_property
    def norm(self):
        """|A| as random vectors see it; of sums and products from that of their terms, whose rounding errors stay."""
        return _norm(self.A, self.rights)

    @functools.cached_property
    def noise(self):
        """How far products move, relative to a vector's norm, where its last digits do; 0 under a given tolerance."""
        if self.given_rtol is not None:
            return 0.0
        noises = [_noise(self.A.__matmul__, self.rights, self.eps)]
        with contextlib.suppress(NotImplementedError, MissingRule):
            noises.append(_noise(self.A.rmatvec, self.lefts, self.eps))
        return max(noises)

    def equal(self, what, got, expected, v, remedy):
        """Two products with v, or with vectors of its norm."""
        error = np.linalg.norm(widened(got) - widened(expected))
        rounding = self.rtol * math.sqrt(max(1, *self.A.shape)) * self.norm + 16 * self.noise
        tolerance = rounding * np.linalg.norm(widened(v))
        return Comparison(error, tolerance, f"{what} differ; {remedy}")

    def inner(self, what, left, right):
        """Two inner products that should be equal."""
        noise = 16 * self.noise / self.rtol if self.noise else 0.0
        return paired(what, left, right, self.rtol, self.norm + noise)


def _dtype(A):
    """The dtype of vectors for A: its own, double precision where that is none of JAX's floating-point dtypes."""
    dtype = np.dtype(A.dtype if A.dtype is not None else float)
    if not jnp.issubdtype(dtype, np.inexact):
        return np.dtype(float)
    return np.dtype(np.complex128 if dtype.kind == "c" else float) if jnp.finfo(dtype).bits > 64 else dtype


def _eps(A):
    """The unit of rounding: the coarsest among the dtypes of A, its factors, their Spaces and points."""
    dtypes = [_dtype(A)]
    if isinstance(A, LinearMap):
        dtypes += [*A.domain.dtypes, *A.codomain.dtypes]
        dtypes += Space.of(A.x).dtypes if isinstance(A, Derived) else ()
    factors = A._factors().values() if isinstance(A, LinearMap) else ()
    return max([float(jnp.finfo(dtype).eps) for dtype in dtypes] + [_eps(factor) for factor in factors])


def _noise(multiply, vectors, eps):
    signs = np.random.default_rng(0)
    moved = [v * (1 + 2 * eps * signs.choice([-1, 1], v.shape)).astype(v.real.dtype) for v in vectors]
    pairs = [(widened(multiply(u)) - widened(multiply(v)), widened(v)) for u, v in zip(moved, vectors, strict=True)]
    return max((np.linalg.norm(change) / np.linalg.norm(v) for change, v in pairs if v.any()), default=0.0)


def _relative_noise(subject):
    """The largest error of a product beside its norm."""
    A, vectors, c = subject.A, subject.rights, 0.7
    try:
        doubled = in_double(Values(product, A, A.domain), vectors[0], subject.eps) if isinstance(A, LinearMap) else None
        if doubled is None:
            pairs = [(widened(A @ (c * v).astype(v.dtype)), c * widened(A @ v)) for v in vectors]
        else:
            pairs = [(widened(A @ v), doubled(widened(v))) for v in vectors]
    except Exception:  # any at all: the checks name it
        return math.nan
    with np.errstate(invalid="ignore"):
        errors = [(np.linalg.norm(got - expected), np.linalg.norm(expected)) for got, expected in pairs]
    return float(max((error / (norm or 1.0) for error, norm in errors), default=0.0))


def _norm(A, vectors):
    if isinstance(A, Sum):
        return sum(_norm(term, vectors) for term in A.terms)
    if isinstance(A, Scaled):
        return abs(complex(A.scalar)) * _norm(A.operator, vectors)
    if isinstance(A, Product):
        return max(_norm(A.right, vectors) * _norm(A.left, _draws(A.right.codomain)), _seen_norm(A, vectors))
    if isinstance(A, Gram):
        middle = _draws(A.operator.codomain)
        weight = 1.0 if A.weight is None else _norm(A.weight, middle)
        return max(_norm(A.operator, vectors) * weight * _norm(A.operator.T, middle), _seen_norm(A, vectors))
    return _seen_norm(A, vectors)


def _draws(space):
    return [np.array(space.ravel(space.draw(jax.random.key(i)))) for i in range(3)]


def _seen_norm(A, vectors):
    norms = [(np.linalg.norm(widened(A @ v.astype(_dtype(A)))), np.linalg.norm(widened(v))) for v in vectors]
    return max((image / norm for image, norm in norms if norm), default=0.0)
