"""The checks that `check` makes: a new one is one function with `@claim`.

Each takes a subject, `linops.check.Subject`, and yields Comparisons; it yields none where the operator does not claim
the property, and raises Unavailable where the property cannot be tried.
"""

import contextlib
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from linops.derivatives.gauss_newton import GaussNewton
from linops.derivatives.map import Derived
from linops.linear_map import LinearMap
from linops.precision import is_complex, loses_precision
from linops.program.function import Function
from linops.program.holomorphy import trace_linear
from linops.program.missing import MissingRule
from linops.program.over_data import OverData, at_once
from linops.realify import join
from linops.space import Space
from linops.verify.differences import Comparison, Unavailable, comparisons
from linops.verify.values import Values, value_at, widened

CHECKS = {}  # name -> (function of a subject, names of the checks that it presupposes)


def claim(name, *presupposed):
    """Register a check under a name, after those that it presupposes."""

    def register(run):
        CHECKS[name] = run, presupposed
        return run

    return register


@claim("dtype")
def _dtype(subject):
    A, v = subject.A, subject.rights[0]
    for name, space in (("domain", subject.domain), ("codomain", subject.codomain)):
        honest = not loses_precision(v.dtype, space.dtype)
        yield _holds(honest, f"A.dtype claims {v.dtype}, but the {name} holds {space.dtype}: claim that, or convert x")
        if not honest:
            return
    with contextlib.suppress(FloatingPointError):  # the next check names it
        expected, got = np.result_type(A.dtype or v.dtype, v.dtype), np.asarray(A @ v).dtype
        yield _holds(got == expected, f"A v has dtype {got}, expected {expected}, which A.dtype claims")


@claim("finite", "dtype")
def _finite(subject):
    for A in derived(subject.A):
        yield _is_finite("x", widened(A.x), Space.of(A.x))
        if (function := _with_values(A)) is not None:
            yield _is_finite("f(x)", _value(function, A.x), function.codomain)
    for v in subject.rights:
        yield _is_finite("A v", subject.A @ v, subject.codomain)
    with _where_available():
        for w in subject.lefts:
            yield _is_finite("Aᴴ w", subject.A.rmatvec(w), subject.domain)


@claim("deterministic", "finite")
def _deterministic(subject):
    for A in derived(subject.A):
        function = _with_values(A)
        same = function is None or _identical(_value(function, A.x), _value(function, A.x))
        yield _holds(same, "f(x), computed twice, differs: f has a callback with state or a side effect")
    for A, function in _traced_again(subject):
        if function.codomain.layout != A.function.codomain.layout:
            yield _holds(False, "f= is not the function that A was made of: its values have another structure or shape")
            return
        same = _identical(_value(A.function, A.x), _value(function, A.x))
        yield _holds(
            same,
            "f(x) differs once f is traced again: f draws random numbers or reads what changes while it is traced; "
            "pass them through args=, random numbers as a JAX key (or f= is another function)",
        )
    remedy = "the product depends on more than the vector: look for random numbers, callbacks and state"
    for v in subject.rights:
        first = np.array(subject.A @ v)
        yield _holds(
            _identical(first, subject.A @ v), f"A v, computed twice, is not the same to the last bit; {remedy}"
        )


@claim("fresh", "deterministic")
def _fresh(subject):
    v = subject.rights[0]
    yield from _is_fresh("A v", subject.A.__matmul__, v, subject.A.shape[:1])
    block = np.stack([v, -v], axis=1)
    yield from _is_fresh("A V", subject.A.__matmul__, block, (subject.A.shape[0], 2))
    with _where_available():
        yield from _is_fresh("Aᴴ w", subject.A.rmatvec, subject.lefts[0], subject.A.shape[1:])


@claim("linear", "deterministic")
def _linear(subject):
    A, vectors = subject.A, subject.rights
    a, b = 0.75, -1.25  # exact in any dtype, and without a sum of 1, to find a constant added
    for u, v in zip(vectors, [*vectors[1:], -vectors[0][::-1]], strict=True):
        combined = (a * u + b * v).astype(v.dtype)
        expected = a * widened(A @ u) + b * widened(A @ v)
        size = np.concatenate([widened(u), widened(v)])
        yield subject.equal(
            "A (a u + b v) and a A u + b A v", A @ combined, expected, size,
            f"A is not linear, or computes with fewer digits than {v.dtype}",
        )  # fmt: skip


@claim("complex-linear", "linear")
def _complex_linear(subject):
    for v in subject.rights:
        if not is_complex(v.dtype):
            raise Unavailable("A is real")
        remedy = "A is linear over the reals only: make it a real operator on [Re, Im]"
        yield subject.equal(
            "A (i v) and i A v", subject.A @ (v * v.dtype.type(1j)), 1j * widened(subject.A @ v), v, remedy
        )


@claim("blocks", "fresh", "linear")
def _blocks(subject):
    A, vectors = subject.A, subject.rights
    remedy = "look at matmat"
    columns = np.stack([widened(A @ v) for v in vectors], axis=1)
    block = np.stack(vectors, axis=1)
    yield subject.equal("A V and its columns A v", A @ block, columns, block, remedy)
    yield subject.equal("A v and A v[:, None]", A @ block[:, :1], columns[:, :1], block, remedy)
    with _where_available():
        columns = np.stack([widened(A.rmatvec(w)) for w in subject.lefts], axis=1)
        block, remedy = np.stack(subject.lefts, axis=1), "look at rmatmat and A.H"
        yield subject.equal("Aᴴ W and its columns Aᴴ w", A.H @ block, columns, block, remedy)


@claim("device", "linear")
def _device(subject):
    A = subject.A
    if not isinstance(A, LinearMap):
        raise Unavailable("a SciPy operator takes NumPy arrays")
    for v in subject.rights[:1]:
        with subject.domain.scope():
            on_device = jnp.asarray(v)
            product, tree = A @ on_device, A.mv(A.domain.unravel(on_device))
        yield _holds(isinstance(product, jax.Array), f"A v for a jax.Array is {type(product)}, expected a jax.Array")
        yield subject.equal("A v for jax.Array and for NumPy", product, A @ v, v, "look at device_product")
        yield subject.equal("A.mv(tree) and A v", tree, A @ v, v, "look at mv")


@claim("symmetric", "linear", "complex-linear")
def _symmetric(subject):
    A = subject.A
    for name, conjugate, sign in (("symmetric", np.conj, "ᵀ"), ("hermitian", np.asarray, "ᴴ")):
        if getattr(A, name, False):
            what = f"A claims to be {name}, but w{sign} A v and (A w){sign} v differ; make that claim False"
            for v, w in zip(subject.rights, subject.lefts, strict=True):
                yield subject.inner(what, (conjugate(w), A @ v), (conjugate(A @ w), v))


@claim("adjoint", "symmetric")
def _adjoint(subject):
    what = "<w, A v> and <Aᴴ w, v> differ; look at rmatvec and _mv_transposed"
    yield from _inner_products(subject, what, lambda w: (w, subject.A.rmatvec(w)))


@claim("transpose", "symmetric")
def _transpose(subject):
    what = "wᵀ A v and (Aᵀ w)ᵀ v differ; look at A.T"
    yield from _inner_products(subject, what, lambda w: (np.conj(w), np.conj(subject.A.T @ w)))


def _inner_products(subject, what, moved):
    with _where_available():
        for v, w in zip(subject.rights, subject.lefts, strict=True):
            left, image = moved(w)
            yield subject.inner(what, (left, subject.A @ v), (image, v))


@claim("positive semidefinite", "symmetric")
def _positive_semidefinite(subject):
    A = subject.A
    if not getattr(A, "positive_semidefinite", False) or not A.shape[0]:
        return
    ritz = _ritz_values(A, subject.rights[0])
    tolerance = subject.rtol * math.sqrt(A.shape[0]) * max(abs(ritz))
    message = f"A claims to be positive semidefinite, and has an eigenvalue of at most {ritz.min():.6g}"
    yield Comparison(max(0.0, -ritz.min()), tolerance, message)


@claim("examples", "deterministic")
def _examples(subject):
    """That f does over the examples of a batch what `reduction` says: else batches of other sizes make another A."""
    functions = [(A.function, A.x) for A in derived(subject.A) if isinstance(A.function, OverData)]
    tried = [(f, x, parts) for f, x in functions if (parts := _of_few_examples(f)) is not None]
    if not tried:
        raise Unavailable("not a mean or sum over data")
    for f, x, parts in tried:
        whole, one, other = (_value(part, x) for part in parts)
        joined, name = ((one + other) / 2, "mean") if f.source.is_mean else (one + other, "sum")
        message = (
            f'f of a batch is not the {name} over its examples, as reduction="{name}" says: pass what f does, or leave '
            "out of f what is not of each example"
        )
        tolerance = 16 * subject.rtol * sum(map(np.linalg.norm, (whole, one, other)))
        yield Comparison(np.linalg.norm(whole - joined), tolerance, message)


def _of_few_examples(f):
    """A function over data of up to four examples, and of the halves of these; None of one for rows."""
    leaves = jax.tree.leaves(next(iter(f.source.iterate()))) if f.source.is_of_host else f.arrays
    half = min(2, leaves[0].shape[0] // 2)
    source = f.first.source or f.first.held_source
    if half == 0 or source is None:
        return None

    def of(start, stop):
        arrays = [jnp.asarray(leaf)[start:stop] for leaf in leaves]
        return source.trace(f.args, tuple(map(jax.typeof, arrays))).of_batch(arrays)

    parts = of(0, 2 * half), of(0, half), of(half, 2 * half)
    return parts if len({part.codomain.layout for part in parts}) == 1 else None


@claim("derivative", "deterministic")
def _derivative(subject):
    if not (operators := list(derived(subject.A))):
        raise Unavailable("not made of a function")
    for A in operators:
        with _where_available():
            yield from comparisons(A, subject)


def derived(A):
    """The operators made of functions among A and its factors, each once."""
    found = {}
    pending = [A] if isinstance(A, LinearMap) else []
    while pending:
        A = pending.pop()
        if isinstance(A, Derived):
            found[id(A)] = A
        else:
            pending.extend(A._factors().values())
    return found.values()


def _with_values(A):
    """The function of A, whose values over data are a mean or sum, or rows of all examples; None where they are gone.

    Rows that come from the host batch by batch have no place beside one another.
    """
    if not isinstance(A, GaussNewton) or A._source is None:
        return A.function
    return None if A._source.is_of_host else at_once(A).function


def _value(function, x):
    return Values(value_at, function, Space.of(x))(widened(x))


def _traced_again(subject):
    """Operators with their functions, traced twice again, where f is given or can be found by its name."""
    A, f = subject.A, subject.f
    if f is None:
        functions = [(A, A.function) for A in derived(subject.A) if isinstance(A.function, Function)]
        found = [(A, function.source.trace, function.args) for A, function in functions if function.source]
    elif source := isinstance(A.function, Function) and (A.function.source or A.function.held_source):
        found = [(A, dataclasses.replace(source, f=lambda x, *args: f(x)).trace, A.function.args)]
    else:
        x = A.x if A.map.realified is None else join(A.x, A.map.realified)
        found = [(A, lambda f: trace_linear(f, x, Space.of(x), (), realify=A.map.realified is not None)[0], f)]
    for A, trace, argument in found:
        for _ in range(2):
            with Space.of(A.x).scope():
                yield A, trace(argument)


def _is_finite(what, vector, space):
    bad = np.flatnonzero(~np.isfinite(widened(vector)))
    where = f"the first at {space.locate(int(bad[0])) or 'the value'}" if len(bad) else ""
    return _holds(not len(bad), f"{what} has NaN or Inf in {len(bad)} of {space.size} entries, {where}")


def _is_fresh(what, multiply, v, shape):
    """The product is a NumPy array of its own: it may be overwritten, and so may v, and nothing else changes."""
    given = v.copy()
    product = multiply(v)
    if not isinstance(product, np.ndarray) or product.shape != shape:
        yield _holds(False, f"{what} is {type(product).__name__} of shape {np.shape(product)}, expected NumPy, {shape}")
        return
    yield _holds(_identical(v, given), f"{what} changed its vector; work on a copy")
    yield _holds(not np.may_share_memory(product, v), f"{what} shares memory with its vector; return a copy")
    if not product.flags.writeable:
        yield _holds(False, f"{what} is read-only, and solvers write to it; return np.array(product)")
        return
    first = product.copy()
    product[...] = 7
    second = multiply(given)
    same = _identical(first, second) and not np.may_share_memory(product, second)
    yield _holds(same, f"{what} is memory that A uses again: overwritten, the next product changes it; return a copy")
    product[...] = first


def _ritz_values(A, v, steps=16):
    """Ritz values of a few steps of Lanczos' method, orthogonalized in full: within the numerical range of A."""
    basis = [widened(v) / np.linalg.norm(widened(v))]
    images = []
    for _ in range(min(steps, len(v))):
        images.append(widened(A @ basis[-1].astype(v.dtype)))
        Q, new = np.stack(basis, axis=1), images[-1]
        for _ in range(2):
            new = new - Q @ (Q.conj().T @ new)
        if np.linalg.norm(new) <= 1e-3 * np.linalg.norm(images[-1]):
            break
        basis.append(new / np.linalg.norm(new))
    Q, AQ = np.stack(basis[: len(images)], axis=1), np.stack(images, axis=1)
    T = Q.conj().T @ AQ
    return np.linalg.eigvalsh((T + T.conj().T) / 2)


def _identical(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _holds(condition, message):
    return Comparison(0.0 if condition else math.inf, 0.0, message)


@contextlib.contextmanager
def _where_available():
    """Leave a check out where an operator has no adjoint, or a function no rule for it."""
    try:
        yield
    except NotImplementedError as error:
        raise Unavailable(f"not implemented: {error}") from error
    except MissingRule as error:
        raise Unavailable(str(error).split(";")[0]) from error
