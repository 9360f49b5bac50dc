"""The faults that `check` has to find: each an operator that is wrong in one way.

A fault says which checks find it, and the words in which they do; the table of them in the docs is made from these.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import problems
from scipy.sparse.linalg import LinearOperator

import linops
from linops import check

X = problems.tree_point("dict", np.float32)
Z = {"a": problems.complex_normal(3, np.float32), "b": problems.complex_normal((), np.float32)}
M = problems.normal((6, 6), np.float32)


@dataclasses.dataclass(frozen=True)
class Fault:
    make: Callable  # of the operator, or of the pair of it and the options of `check`
    found_by: set
    words: str
    x64: bool

    def report(self):
        with jax.enable_x64(True) if self.x64 else contextlib.nullcontext():
            made = self.make()
            A, options = made if isinstance(made, tuple) else (made, {})
            return check(A, **options)


FAULTS = {}


def fault(name, found_by, words, x64=False):
    def register(make):
        FAULTS[name] = Fault(make, set(found_by.split(", ")), words, x64)
        return make

    return register


class Faulty(linops.Operator):
    """M v, as a base of what is wrong in one way."""

    array: jax.Array

    domain = codomain = property(lambda self: linops.Space.flat(6, np.float32))

    def _mv(self, v):
        return self.array @ v


class FaultyComplex(Faulty):
    """The same on complex vectors."""

    domain = codomain = property(lambda self: linops.Space.flat(6, np.complex64))


class Bare(LinearOperator):
    """M v by SciPy alone, as a base of what is wrong in blocks."""

    def __init__(self):
        super().__init__(np.float32, (6, 6))

    def _matvec(self, v):
        return M @ v

    def _rmatvec(self, w):
        return M.T @ w


def bare(matvec, rmatvec=lambda w: M.T @ w, dtype=np.float32):
    return LinearOperator((6, 6), matvec=matvec, rmatvec=rmatvec, dtype=dtype)


ADJOINT = "<w, A v> and <Aᴴ w, v> differ; look at rmatvec and _mv_transposed"


@fault("an adjoint that is off by 1 %", "adjoint, transpose", ADJOINT)
def _adjoint():
    class Wrong(Faulty):
        def _mv_transposed(self, w):
            return 1.01 * self.array.T @ w

    return Wrong(M)


@fault("a SciPy operator with M for its adjoint", "adjoint, transpose", ADJOINT)
def _bare_adjoint():
    return bare(lambda v: M @ v, lambda w: M @ w)


@fault("a complex adjoint without conjugation", "adjoint", ADJOINT)
def _unconjugated():
    class Wrong(linops.Matrix):
        H = linops.Matrix.T

        def adjoint(self):
            return self.T

        rmatvec = linops.Operator._rmatvec
        __init__ = linops.Matrix.__init__

    return Wrong(M + 1j * M.T)


@fault("A.T is A", "adjoint, transpose", "look at A.T")
def _transpose():
    class Wrong(Faulty):
        T = property(lambda self: self)

    return Wrong(M)


class Skewed(linops.Operator):
    space: linops.Space = linops.static()

    domain = codomain = property(lambda self: self.space)

    def _mv(self, v):
        return {"w": v["w"], "b": v["b"] + v["w"][0, :2]}


@fault('an asymmetric "Hessian"', "symmetric, derivative", "A claims to be symmetric")  # it is no Hessian either
def _hessian():
    class Wrong(linops.Hessian):
        __init__ = linops.Hessian.__init__

        def _linearization(self):
            return Skewed(self.domain)

    return Wrong(lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)) / 2, X)


@fault("a matrix that claims to be symmetric", "symmetric", "A claims to be symmetric.*make that claim False")
def _symmetric():
    class Wrong(Faulty):
        symmetric = True

    return Wrong(M)


@fault("a matrix that claims to be Hermitian", "symmetric", "A claims to be hermitian.*make that claim False")
def _hermitian():
    class Wrong(Faulty):
        hermitian = True

    return Wrong(M)


@fault("a Hermitian matrix that claims to be complex symmetric", "symmetric", "A claims to be symmetric")
def _complex_symmetric():
    class Wrong(FaultyComplex):
        symmetric = True

    return Wrong((M + M.T) + 1j * (M - M.T))


@fault("one negative eigenvalue of 300", "positive semidefinite", "and has an eigenvalue of at most -0.")
def _indefinite():
    d = np.linspace(0, 1, 300, dtype=np.float32)
    assert check(Semidefinite(d))
    d[17] = -0.5
    return Semidefinite(d)


class Semidefinite(linops.Operator):
    """A diagonal matrix that claims to be positive semidefinite."""

    entries: jax.Array

    symmetric = hermitian = positive_semidefinite = True
    domain = codomain = property(lambda self: linops.Space.flat(self.entries.size, self.entries.dtype))

    def _mv(self, v):
        return self.entries * v


LINEAR = "A is not linear, or computes with fewer digits than float"


@fault("the product with the sine of the vector", "linear", LINEAR)
def _sine():
    class Wrong(Faulty):
        def _mv(self, v):
            return self.array @ jnp.sin(v)

    return Wrong(M)


@fault("a constant that is added", "linear", LINEAR)
def _affine():
    class Wrong(Faulty):
        def _mv(self, v):
            return self.array @ v + 1

    return Wrong(M)


@fault("a product that is homogeneous, not additive", "linear", LINEAR)
def _homogeneous():
    return LinearOperator((6, 6), matvec=lambda v: v * np.abs(v), dtype=np.float64)


@fault("float32 arithmetic within float64", "linear", "computes with fewer digits than float64")
def _narrow():
    return LinearOperator((6, 6), matvec=lambda v: (M @ v.astype(np.float32)).astype(float), dtype=np.float64)


@fault("a conjugation inside", "complex-linear", "A .i v. and i A v differ; A is linear over the reals only: make it")
def _conjugating():
    class Wrong(FaultyComplex):
        def _mv(self, v):
            return self.array @ jnp.conj(v)

        def _mv_transposed(self, w):
            return self.array.T @ w

    return Wrong(M)


@fault(
    "float64 claimed over float32",
    "dtype",
    "A.dtype claims float64, but the domain holds float32: claim that, or convert x",
    x64=True,
)
def _dtype():
    class Wrong(Faulty):
        dtype = np.dtype(np.float64)

    return Wrong(M)


@fault("float32 given where float64 is claimed", "dtype", "A v has dtype float32, expected float64, which A.dtype")
def _product_dtype():
    return LinearOperator((6, 6), matvec=lambda v: (2 * v).astype(np.float32), dtype=np.float64), {"rtol": 1e-5}


@fault(
    "a sum over examples that is said to be a mean",
    "examples",
    'not the mean over its examples, as reduction="mean" says',
)
def _reduction():
    return linops.Hessian(lambda x, batch: jnp.sum(jnp.cosh(batch @ x)), np.ones(6, np.float32), data=M)


@fault("another adjoint in blocks", "blocks", "Aᴴ W and its columns Aᴴ w differ; look at rmatmat and A.H")
def _adjoint_blocks():
    class Wrong(Bare):
        def _rmatmat(self, W):
            return 2 * M.T @ W

    return Wrong()


@fault("blocks with their columns reversed", "blocks", "A V and its columns A v differ; look at matmat")
def _blocks():
    class Wrong(Bare):
        def _matmat(self, V):
            return (M @ V)[:, ::-1]

    return Wrong()


@fault("mv that gives twice the product", "device", r"A.mv\(tree\) and A v differ; look at mv")
def _mv():
    class Wrong(Faulty):
        def mv(self, v):
            return 2 * super().mv(v)

    return Wrong(M)


@fault("NumPy for a device array", "device", "numpy.ndarray'>, expected a jax.Array")
def _host():
    class Wrong(Faulty):
        def __matmul__(self, other):
            return np.array(linops.Operator.__matmul__(self, other))

    return Wrong(M)


@fault("an aliasing product: one buffer for all", "fresh", "A v is memory that A uses again: overwritten, .*copy")
def _aliasing():
    buffer = np.empty(6, np.float32)
    return bare(lambda v: np.matmul(M, v.reshape(-1), out=buffer))


@fault("a product that is its vector", "fresh", "A v shares memory with its vector; return a copy")
def _identity():
    return bare(lambda v: v, lambda w: +w)


@fault("a read-only product", "fresh", "A v is read-only, and solvers write to it; return np.array")
def _read_only():
    def matvec(v):
        product = M @ v
        product.flags.writeable = False
        return product

    return bare(matvec)


@fault("a vector that is overwritten", "deterministic", "A v, computed twice, is not the same")
def _overwriting():
    def matvec(v):
        product = M @ v
        v[:] = 0
        return product

    return bare(matvec)


@fault("a block that is overwritten", "fresh", "A V changed its vector; work on a copy")
def _overwriting_blocks():
    class Wrong(Bare):
        def _matmat(self, V):
            product = M @ V
            V[:] = 0
            return product

    return Wrong()


@fault("a device array for NumPy", "fresh", r"A v is ArrayImpl of shape \(6,\), expected NumPy, \(6,\)")
def _kind():
    class Wrong(linops.Matrix):
        __init__ = linops.Matrix.__init__

        def __matmul__(self, v):
            return jnp.asarray(super().__matmul__(v))

    return Wrong(M)


@jax.custom_jvp
def wrong_rule(x):
    return jnp.sin(x)


wrong_rule.defjvp(lambda x, v: (jnp.sin(x[0]), 1.1 * jnp.cos(x[0]) * v[0]))


for operator, make in {
    "a Jacobian": lambda: linops.Jacobian(wrong_rule, X["b"]),
    "a product with a Jacobian": lambda: linops.Jacobian(wrong_rule, X["b"]).T @ linops.Matrix(M[:2, :2]),
    "Gauss-Newton": lambda: linops.GaussNewton(wrong_rule, X["b"]),
    "the loss of Gauss-Newton": lambda: linops.GaussNewton(lambda x: x * x, X["b"], lambda z: jnp.sum(wrong_rule(z))),
    "a Gram matrix": lambda: linops.JacobianGram(wrong_rule, X["b"]),
    "a Gram matrix at two points": lambda: linops.JacobianGram(wrong_rule, X["b"], X["b"]),
    "a Hessian": lambda: linops.Hessian(lambda x: jnp.sum(wrong_rule(x)), X["b"]),
    "a weighted Hessian": lambda: linops.Hessian(wrong_rule, X["b"], weights=X["b"]),
    "a holomorphic Jacobian": lambda: linops.Jacobian(wrong_rule, X["b"] * np.complex64(1 + 1j)),
    "a realified Jacobian": lambda: linops.Jacobian(lambda z: jnp.abs(wrong_rule(z.real)), X["b"].astype(np.complex64)),
}.items():
    fault(
        f"a custom rule off by 10 % in {operator}",
        "derivative",
        "is not the slope of .* by central differences: look at custom derivative rules",
    )(make)


RULE = "is not the slope of .* by central differences: look at custom derivative rules, for (entry|the value)"
POINT = np.linspace(0.3, 1, 3, dtype=np.float32)
TWO = {"a": POINT, "m": POINT}


def off_by(factor, f=jnp.sin):
    """The function f with a rule for its derivative that is wrong by a factor."""
    wrong = jax.custom_jvp(f)
    wrong.defjvp(lambda x, v: (f(x[0]), factor * jax.jvp(f, x, v)[1]))
    return wrong


# A function f beside numbers of another scale s: in rows, columns, and leaves of a gradient.
BESIDE = {
    "outputs in a leaf of their own": lambda f, s: linops.Jacobian(lambda p: {"a": f(p["a"]), "m": s * p["m"]}, TWO),
    "outputs in one leaf": lambda f, s: linops.Jacobian(lambda x: jnp.concatenate([s * x, f(x)]), POINT),
    "inputs in a leaf of their own": lambda f, s: linops.Jacobian(lambda p: s * p["m"] + f(p["a"]), TWO),
    "inputs in one leaf": lambda f, s: linops.Jacobian(lambda x: s * x[:1] + f(x[1:]), POINT),
    "points in a leaf of their own": lambda f, s: linops.Jacobian(
        lambda p: p["m"] + f(p["a"] / s), {"a": POINT * np.float32(s), "m": POINT}
    ),
    "a gradient's leaf of its own": lambda f, s: linops.Hessian(
        lambda p: s * jnp.sum(p["m"] ** 2) + jnp.sum(f(p["a"])), TWO
    ),
    "a gradient in one leaf": lambda f, s: linops.Hessian(lambda x: s * x[0] ** 2 + jnp.sum(f(x[1:])), POINT),
    "outputs of Gauss-Newton": lambda f, s: linops.GaussNewton(lambda p: {"a": f(p["a"]), "m": s * p["m"]}, TWO),
    "outputs of a Gram matrix": lambda f, s: linops.JacobianGram(lambda p: {"a": f(p["a"]), "m": s * p["m"]}, TWO),
    "inputs of a Gram matrix at two points": lambda f, s: linops.JacobianGram(
        lambda p: s * p["m"] + f(p["a"]), TWO, jax.tree.map(np.negative, TWO)
    ),
}


for beside in ("outputs in one leaf", "inputs in one leaf", "a gradient in one leaf"):
    fault(f"a wrong sign beside {beside} of 10^6 times its size", "derivative", RULE)(
        lambda make=BESIDE[beside]: make(off_by(-1.0), 1e6)
    )


DIGITS = np.linspace(0.1, 1.2, 30, dtype=np.float32)


fault("a custom rule off by 0.03 % in float32", "derivative", RULE)(lambda: linops.Jacobian(off_by(1.0003), DIGITS))


@fault("a custom rule off by 10 % where f has no double precision", "derivative", RULE)
def _single():
    def f(x):
        same = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((30,), np.float32), jax.lax.stop_gradient(x))
        return off_by(1.1)(x) + 0 * same

    return linops.Jacobian(f, DIGITS)


@fault(
    "a slope that is none of those at a kink",
    "derivative",
    "f has a kink near x, where only slopes between those to its two sides pass; look at custom derivative rules",
)
def _kinked():
    f = jax.custom_jvp(jax.nn.relu)
    f.defjvp(lambda x, v: (jax.nn.relu(x[0]), jnp.where(x[0] >= 0, 1, -1) * jnp.where(x[0] == 0, 1.5, 1) * v[0]))
    return linops.Jacobian(f, np.zeros(3, np.float32))


@fault("Gauss-Newton that forgets its loss", "derivative", "<w, A v> and <J w, H J v> of .*Forgetful")
def _forgetful():
    class Forgetful(linops.GaussNewton):
        __init__ = linops.GaussNewton.__init__

        def _expand(self):
            return linops.GaussNewton._expand(linops.GaussNewton(problems.values, self.x))

    return Forgetful(problems.values, X, problems.loss)


@fault("a Gram matrix that forgets its second point", "adjoint, transpose, derivative", "<w, A v> and <J1ᴴ w, J2ᴴ v>")
def _one_point():
    class Same(linops.JacobianGram):
        __init__ = linops.JacobianGram.__init__

        def _expand(self):
            return linops.JacobianGram._expand(self._replace(x2=self.x))

    return Same(problems.values, X, problems.tree_point("dict", np.float32, seed=7))


def noise(x):
    return x * np.random.default_rng().normal()


TRACED_AGAIN = "f.x. differs once f is traced again: f draws random numbers.*pass them through args="


@fault("NumPy's random numbers in an importable f", "deterministic", TRACED_AGAIN)
def _random():
    return linops.Jacobian(noise, X["b"])


@fault("NumPy's random numbers in a lambda, given as f=", "deterministic", TRACED_AGAIN)
def _random_lambda():
    f = lambda x: noise(x)  # noqa: E731
    assert check(linops.Jacobian(f, X["b"]))  # without f= there is no way to know
    return linops.Jacobian(f, X["b"]), {"f": f}


@fault("the same, of complex numbers", "deterministic", TRACED_AGAIN)
def _random_complex():
    f = lambda x: noise(x)  # noqa: E731
    return linops.Jacobian(f, X["b"] * np.complex64(1j)), {"f": f}


@fault("a callback with state", "deterministic", "f.x., computed twice, differs: f has a callback with state")
def _callback():
    rng = np.random.default_rng(0)

    def f(x):
        factor = jax.pure_callback(lambda: np.float32(rng.normal()), jax.ShapeDtypeStruct((), np.float32))
        return x * factor

    return linops.Jacobian(f, X["b"])


@fault("a product with state", "deterministic", "A v, computed twice, is not the same to the last bit.*random numbers")
def _stateful():
    rng = np.random.default_rng(0)
    return LinearOperator((6, 6), matvec=lambda v: v * rng.normal(), dtype=np.float64)


def roots(x):
    return {"fine": jnp.sum(x["w"]), "roots": jnp.sqrt(x["b"])}


def jacobian_of_roots(second, **options):
    return linops.Jacobian(roots, {"w": X["w"], "b": np.array([1.0, second], np.float32)}, **options)


@fault(
    "an infinite derivative",
    "finite",
    r"raised FloatingPointError: a product with .* has NaN or Inf.*the first at \['roots'\]\[1\]",
)
def _infinite():
    return jacobian_of_roots(0)


@fault(
    "an infinite derivative, with check_finite=False",
    "finite",
    r"A v has NaN or Inf in 1 of 3 entries, the first at \['roots'\]\[1\]",
)
def _unchecked():
    return jacobian_of_roots(0, check_finite=False)


@fault("NaN in f(x)", "finite", r"f\(x\) has NaN or Inf in 1 of 3 entries, the first at \['roots'\]\[1\]")
def _nan_value():
    return jacobian_of_roots(-1)


@fault("NaN in x", "finite", r"x has NaN or Inf in 1 of 11 entries, the first at \['b'\]\[1\]")
def _nan_point():
    return jacobian_of_roots(np.nan)
