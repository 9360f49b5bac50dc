"""What users hand over: points, arguments, integers; what is refused, with the remedy, and what is narrowed."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse
from models import Module, Moments
from processes import in_subprocess

import linops
from linops.arrays import as_data

FOUR = np.arange(1, 5, dtype=np.float32)


@pytest.mark.parametrize("x", [{"a": FOUR, "n": np.arange(3)}, {"a": FOUR, "n": 3}, {"a": FOUR, "n": np.array([True])}])
def test_integer_or_boolean_leaves(x):
    with pytest.raises(TypeError, match=r"x\['n'\] has dtype (int32|bool), expected floating point.*astype.*args="):
        linops.Jacobian(lambda x: x["a"], x)


def test_no_arrays():
    with pytest.raises(TypeError, match=r"x holds no arrays: got {}, expected a pytree with at least one array"):
        linops.Jacobian(jnp.sin, {})
    with pytest.raises(TypeError, match=r"x is 'text'; expected an array or a number"):
        linops.Jacobian(jnp.sin, "text")


def test_leaked_tracer():
    leaked = []

    @jax.jit
    def leak(x):
        leaked.append(x)
        return x

    leak(jnp.ones(4))
    with pytest.raises(
        TypeError,
        match=r"an array that f closes over is a traced value that has left the jit, vmap or grad.*expected an array",
    ):
        linops.Jacobian(lambda x: x * leaked[0], FOUR)


def test_float64_input_without_x64():
    v = np.ones(4)
    with pytest.warns(
        linops.PrecisionWarning, match=r"x is float64 and is narrowed to float32; call jax.config.update"
    ) as record:
        J = linops.Jacobian(jnp.sin, v)
    assert [warning.filename for warning in record] == [__file__]
    assert J.dtype == np.float32
    with pytest.warns(linops.PrecisionWarning, match=r"args\[0\] is float64 and is narrowed"):
        linops.Jacobian(lambda x, a: x * a, FOUR, args=(v,))
    for number in (np.float64(0.1), np.complex128(0.1j), np.array(0.1)):  # Python's own ask for no precision
        J = linops.Jacobian(
            lambda x: {"a": 2 * x["a"]}, {"a": number.astype(np.dtype(number.dtype.kind + f"{number.itemsize // 2}"))}
        )
        for use in (lambda number=number: linops.Jacobian(jnp.sin, number), lambda J=J, n=number: J.mv({"a": n})):
            with pytest.warns(linops.PrecisionWarning, match=r"is (float64|complex128) and is narrowed to"):
                use()


def test_masked_points():
    J = linops.Jacobian(jnp.sin, FOUR)
    hidden = np.ma.array(FOUR, mask=[0, 1, 0, 0])
    for use in (lambda: J.at(hidden), lambda: linops.Diagonal(hidden)):
        with pytest.raises(ValueError, match=r"has masked entries, expected numbers in all; fill them"):
            use()


def test_integers_that_would_wrap():
    assert linops.Matrix(np.eye(1, dtype=np.float32)).mv(np.array([2**40])) == 2.0**40
    with pytest.raises(
        ValueError, match=r"args\[0\] holds integers beyond int32, expected ones within; convert it to floating"
    ):
        linops.Jacobian(lambda x, n: x * n, FOUR, args=(np.array(2**40),))


THREE = np.arange(1, 4, dtype=np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """As flax has it: a count of steps beside the parameters, and the state of an optimizer."""

    step: object
    params: object
    opt_state: object = None


class Unregistered:
    """A module that is no pytree."""


class RecordsGradients:
    """A tensor of torch that records a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


PARAMS = "pass its parameters, x.params, and let f put them in their place"
MODULE = r"pass the arrays of the model alone, .* eqx.partition\(model, eqx.is_inexact_array\)"
KEY = "pass a random key through args= or a closure"
SPARSE = "pass the numbers that it holds, its .data, and let f make a sparse array of them"


REFUSED = {  # a point, where in it, and the remedy
    "random key": (lambda: jax.random.key(0), "", KEY),
    "random keys": (lambda: {"w": THREE, "key": jax.random.split(jax.random.key(0), 3)}, "['key']", KEY),
    "random key of old": (lambda: {"w": THREE, "key": jax.random.PRNGKey(0)}, "['key']", "through args= or a closure"),
    "TrainState": (lambda: TrainState(0, {"w": THREE}), ".step", PARAMS),
    "TrainState on the device": (
        lambda: TrainState(jnp.int32(0), {"w": THREE}, Moments(jnp.int32(1), THREE)),
        ".step",
        PARAMS,
    ),
    "state of an optimizer": (
        lambda: TrainState(0.0, {"w": THREE}, Moments(np.int32(1), THREE)),
        ".opt_state.count",
        PARAMS,
    ),
    "equinox module": (lambda: Module(THREE, jax.nn.relu), ".activation", MODULE),
    "equinox module in a list": (lambda: [Module(THREE, jnp.tanh)], "[0].activation", MODULE),
    "text": (lambda: {"w": THREE, "name": "dense"}, "['name']", MODULE),
    "sparse matrix": (lambda: scipy.sparse.csr_matrix(np.eye(2)), "", SPARSE),
    "sparse array": (lambda: {"A": scipy.sparse.coo_array(np.eye(2))}, "['A']", SPARSE),
    "sparse array of JAX": (lambda: {"A": sparse.BCOO.fromdense(jnp.eye(2))}, "['A']", SPARSE),
    "sparse rows of JAX": (lambda: sparse.BCSR.fromdense(jnp.eye(2)), "", SPARSE),
    "mutable reference": (
        lambda: {"w": jax.new_ref(jnp.ones(2))},
        "['w']",
        r"pass the value of the reference, as in ref",
    ),
    "no pytree": (Unregistered, "", "expected an array or a number"),
    "tensor": (
        lambda: {"w": RecordsGradients()},
        "['w']",
        r"expected an array or a number; NumPy said: .*tensor.detach",
    ),
    "None": (
        lambda: {"a": None, "b": [None]},
        "",
        "holds no arrays: got .*, expected a pytree with at least one array",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    point, where, remedy = REFUSED[name]
    for make in (linops.Jacobian, linops.Hessian, linops.GaussNewton, linops.JacobianGram):
        with pytest.raises(TypeError, match=remedy) as error:
            make(lambda x: jax.tree.leaves(x)[0], point())
        assert str(error.value).startswith(f"x{where} ")
        assert "expected" in str(error.value)


def test_the_remedies():
    state = TrainState(3, {"w": THREE})
    J = linops.Jacobian(lambda params: dataclasses.replace(state, params=params).params["w"] ** 2, state.params)
    np.testing.assert_array_equal(J @ np.ones(3, np.float32), 2 * THREE)
    model = Module(THREE, jnp.tanh)
    J = linops.Jacobian(lambda weight: dataclasses.replace(model, weight=weight)(0.0), model.weight)
    assert not (J @ THREE).any()
    A = scipy.sparse.csr_array(np.diag(THREE))
    rows, columns = A.nonzero()
    f = lambda data: sparse.BCOO((data, np.stack([rows, columns], 1)), shape=(3, 3)) @ jnp.ones(3)  # noqa: E731
    np.testing.assert_array_equal(linops.Jacobian(f, A.data) @ THREE, THREE)
    np.testing.assert_array_equal(
        linops.Jacobian(lambda s: s.params, TrainState(0.5, THREE)).toarray()[:, 1:], np.eye(3)
    )


def eye(dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        return linops.Matrix(jnp.eye(2, dtype=dtype))


# Integers.


BIG = np.array([2**24 + 1, 1, -(2**24) - 1])


@pytest.mark.parametrize("on_device", [False, True])
def test_integers(on_device):
    A = linops.Jacobian(lambda x: x * 1.0, np.ones(3, np.float32))
    given = jnp.asarray(BIG) if on_device else BIG
    space = linops.Space.of(jnp.zeros(3))
    for use in (
        lambda v: A._replace() @ v,
        lambda v: A._replace() @ v[:, None],
        A.mv,
        A.at,
        space.ravel,
        space.unravel,
        linops.Diagonal,
        lambda v: linops.Matrix(v[:, None]),
    ):
        with pytest.warns(
            linops.PrecisionWarning, match="holds integers with more digits than float32, such as 16777217"
        ):
            use(given)
        use(given * 0 + 2**24)
        use(given - jnp.sign(given) if on_device else given - np.sign(given))


@pytest.mark.parametrize(
    ("dtype", "digits"), [("float16", 11), ("bfloat16", 8), ("float32", 24), ("float64", 53), ("complex64", 24)]
)
@pytest.mark.parametrize("integer", ["int16", "uint16", "int32", "int64", "uint64"])
def test_integers_are_judged_by_their_digits(dtype, digits, integer):
    A, info = eye(dtype), np.iinfo(integer)
    values = [2**k + d for k in range(1, 64) for d in (-1, 0, 1)] + [0, 1, info.max, info.min, info.min + 1]
    largest = int(float(jnp.finfo(dtype).max))
    for value in {v for v in values if info.min <= v <= info.max}:
        held = abs(value) <= largest and (value == 0 or abs(value) >> _zeros(value) < 2**digits)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                A._replace() @ np.array([value, 0], integer)
            except FloatingPointError:
                assert abs(value) > largest
        assert held == (not caught), (value, [str(w.message) for w in caught])


def _zeros(value):
    """How many zeros the binary digits of an integer end in."""
    return (abs(value) & -abs(value)).bit_length() - 1


# Arguments and points.


def test_arguments_in_the_precision_of_the_space():
    with jax.enable_x64(True):
        space = linops.Space.of(jnp.ones(2))
    with space.scope():
        assert as_data(0.1, "args[0]").dtype == np.float64
        assert float(as_data(0.1, "args[0]")) == 0.1
        assert as_data(0.1j, "args[0]").dtype == np.complex128
        assert as_data(np.array([2**40]), "args[0]")[0] == 2**40
    assert as_data(0.1, "args[0]").weak_type
    for number, error in ((1e-50, ValueError), (1e50, OverflowError)):
        with pytest.raises(error, match=r"args\[0\] is 1e.50, (below|beyond)"):
            as_data(number, "args[0]")


def test_numbers_in_points():
    f = lambda x: x["a"] * x["b"]  # noqa: E731
    for number, error in ((1e-50, ValueError), (1e50, OverflowError), (np.float64(1e-50), ValueError)):
        with pytest.raises(error, match=r"x\['b'\] is 1e.50, (below|beyond)"):
            linops.Jacobian(f, {"a": np.ones(2, np.float32), "b": number})
    J = linops.Jacobian(f, {"a": np.ones(2, np.float32), "b": 0.1})
    with pytest.raises(ValueError, match=r"the tree\['b'\] is 1e-50, below"):
        J.mv({"a": np.ones(2, np.float32), "b": 1e-50})


class Fields(linops.Operator):
    """An operator of a user, whose constructor is that of its fields."""

    array: np.ndarray
    tree: dict

    domain = codomain = property(lambda self: linops.Space.flat(3, np.float32))

    def _mv(self, v):
        return self.array * sum(self.tree["parts"]) * v


HANDED = {  # operators of an array of NumPy
    "a point": lambda a: linops.Hessian(lambda x: jnp.sum(x**3), a),
    "another point": lambda a: linops.Hessian(lambda x: jnp.sum(x**3), THREE).at(a),
    "two points": lambda a: linops.JacobianGram(lambda x: x**2, a, a),
    "args": lambda a: linops.Jacobian(lambda x, a: a * x, THREE, args=(a,)),
    "weights": lambda a: linops.Hessian(lambda x: x**2, THREE, weights=a),
    "a closure": lambda a: linops.Jacobian(lambda x: a * x, THREE),
    "a matrix": lambda a: linops.Matrix(np.broadcast_to(a, (3, 3))),
    "a diagonal": lambda a: linops.Diagonal(a),
    "a scalar": lambda a: a[:1].reshape(()) * linops.Matrix(np.eye(3, dtype=np.float32)),
    "a field": lambda a: Fields(a, {"parts": [THREE]}),
    "a tree in a field": lambda a: Fields(THREE, {"parts": [THREE, a]}),
}


@pytest.mark.parametrize("name", HANDED)
def test_what_is_handed_over_is_copied(name):
    a = 2 * THREE
    expected = HANDED[name](a.copy()) @ THREE
    fresh, used = HANDED[name](a), HANDED[name](a)
    used @ THREE
    a[:] = 50
    for A in (fresh, used):
        np.testing.assert_array_equal(A @ THREE, expected)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(A))


def test_forks_are_refused():
    """JAX has threads, of which a forked child has none but may wait for their answers, for ever."""
    printed = in_subprocess(
        "-c",
        """
import copy, os, warnings
import jax.numpy as jnp, numpy as np, linops
warnings.simplefilter("ignore")  # Python and JAX warn of the fork
def attempt(multiply):
    try:
        multiply()
    except RuntimeError as error:
        print(error, flush=True)
before = os.fork()  # before any array there is nothing to lose
if before == 0:
    print(linops.Matrix(np.eye(3)) @ np.ones(3), flush=True)
    os._exit(0)
os.waitpid(before, 0)
A, on_device = linops.Matrix(np.eye(3)), jnp.ones(3)
A @ np.ones(3)
after = os.fork()
if after == 0:
    for v in (np.ones(3), np.ones((3, 2)), on_device):
        attempt(lambda: A @ v)
    attempt(lambda: A.mv(np.ones(3)))
    attempt(lambda: linops.Hessian(jnp.sum, np.ones(3)) @ np.ones(3))
    for use in (copy.deepcopy, linops.check, lambda A: 2 * A, lambda A: A - A, lambda A: A.diagonal()):
        attempt(lambda: use(A))
    for use in (A.domain.ravel, A.domain.unravel, linops.Diagonal, lambda x: linops.batch_jacobian(jnp.sin, x)):
        attempt(lambda: use(on_device))
    os._exit(0)
os.waitpid(after, 0)
""",
    )
    assert printed.startswith("[1. 1. 1.]")
    assert printed.count("got a call in a process that was forked from one that computes with JAX") == 14
    assert printed.count("expected a process of its own: use multiprocessing with the start method spawn or") == 14
