"""Hostile vectors: whatever is multiplied ends in the right numbers or in an error that says what was expected.

`CASES` are the inputs, `WAYS` the ways to multiply. A case says what it comes to: `RIGHT`, compared with NumPy in
double precision, or the words of an error. Where a shape does not suit a way, it is that way's error about shapes.
Every case goes every way, for float32 and float64, real and complex operators. To see the table:

    python tests/test_door_vectors.py
"""

import array
import collections
import dataclasses
import decimal
import fractions
import functools
import re
import tempfile
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse as jax_sparse
from scipy.sparse.linalg import LinearOperator

import linops

RIGHT = "right"
SHAPE = "got an array of shape .*, expected"
SCALAR = "a scalar cannot be an operand of @; use"
TREE = "got a pytree of structure .*, expected one like the point's"
OVERFLOW = "has NaN or Inf: . of . rows, .*; expected finite numbers"
TOO_LARGE = "array that .* multiplies has entries beyond the largest .*; expected smaller numbers"
NOT_NUMBERS = "got .*, expected (an array of )?numbers"
LEAF = "the tree .*expected (an array or a number|float|complex)"
MASKED = "has masked entries, expected numbers in all; fill them with .filled"
SPARSE_VECTOR = "got a sparse array of shape .*, expected .m, n.; a vector goes as v.toarray"
FOREIGN = "shape mismatch|dimension mismatch"  # SciPy's words, for a sparse matrix on the left
COMPLEX = "the tree has dtype complex.*, expected float"


# The operators: their matrices have positive entries of float32, so that nothing cancels.


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


MATRIX = abs(normal(3, 4)) + 0.5
OPERATORS = ["float32", "float64", "complex64", "complex128"]


@functools.cache
def operator(dtype):
    """J and its matrix; J is the derivative of a linear function."""
    D = MATRIX.astype(dtype) * (1 + 0.5j if np.dtype(dtype).kind == "c" else 1)
    D = D.astype(dtype)
    with jax.enable_x64(dtype in ("float64", "complex128")):
        return linops.Jacobian(lambda x: D @ x, np.ones(4, dtype)), D.astype(np.complex128)


# The ways: each a call, the same with a dense matrix D, the shapes it takes for k entries, and the side it is on.


@dataclasses.dataclass(frozen=True)
class Way:
    call: Callable
    dense: Callable
    takes: Callable
    mismatch: str = SHAPE
    left: bool = False  # multiplied from the left, with as many entries as rows


def vector_or_block(shape, k):
    return len(shape) in (1, 2) and shape[0] == k


def vector_or_batch(shape, k):
    return shape == (k, 1) or (len(shape) > 0 and shape[-1] == k)


def vector_or_rows(shape, k):
    return len(shape) in (1, 2) and shape[-1] == k


def along_last(D, v):
    return D @ v if v.shape == (D.shape[1], 1) else np.einsum("ij,...j->...i", D, v)


WAYS = {
    "A @ v": Way(lambda A, v: A @ v, lambda D, v: D @ v, vector_or_block, f"{SHAPE}|{SCALAR}|{FOREIGN}"),
    "np.dot(A, v)": Way(np.dot, lambda D, v: D @ v, vector_or_block, f"{SHAPE}|{SCALAR}|{FOREIGN}"),
    "A.matvec(v)": Way(lambda A, v: A.matvec(v), along_last, vector_or_batch),
    "A.matmat(v)": Way(
        lambda A, v: A.matmat(v), lambda D, v: D @ v, lambda shape, k: len(shape) == 2 and shape[0] == k
    ),
    "A.mv(v)": Way(lambda A, v: A.mv(v), lambda D, v: D @ v, lambda shape, k: shape == (k,), TREE),
    "A.rmatvec(v)": Way(lambda A, v: A.rmatvec(v), lambda D, v: along_last(D.conj().T, v), vector_or_batch, left=True),
    "v @ A": Way(lambda A, v: v @ A, lambda D, v: v @ D, vector_or_rows, f"{SHAPE}|{SCALAR}|{FOREIGN}", left=True),
}


METHODS = {"A.matvec(v)", "A.matmat(v)", "A.rmatvec(v)"}


# The cases: each made of a vector v of the operator's dtype, with 3 or 4 entries.


@dataclasses.dataclass(frozen=True)
class Case:
    make: Callable
    outcome: str = RIGHT
    mv: str = ""  # what mv comes to, where it differs: it takes pytrees, and does not look for what overflows
    single: str = ""  # what comes of it with a float32 or complex64 operator, where that differs
    methods: str = ""  # what comes of it in methods, where that differs
    left: str = ""  # what comes of v @ A, where that differs

    def expected(self, way, dtype):
        if way == "A.mv(v)":
            mv = self.mv or self.outcome
            return COMPLEX if mv == RIGHT and self.make is complex_vector and dtype.startswith("float") else mv
        if way in METHODS and self.methods:
            return self.methods
        if way == "v @ A" and self.left:
            return self.left
        return self.single if self.single and dtype in ("float32", "complex64") else self.outcome


def complex_vector(v, dtype=np.complex64):
    return v.astype(np.result_type(v.dtype, dtype)) * dtype(1 + 2j)


def strided(v, step):
    return np.repeat(v, 2)[::2] if step > 0 else v[::-1].copy()[::-1]


def frozen(v):
    v = v.copy()
    v.flags.writeable = False
    return v


def unaligned(v):
    raw = np.frombuffer(b"?" + v.tobytes(), np.uint8)[1:]
    return raw.view(v.dtype)


def on_disk(v, mode="r+"):
    with tempfile.NamedTemporaryFile() as file:
        file.write(v.tobytes())
        file.flush()
        return np.memmap(file.name, v.dtype, mode, shape=v.shape)


class Subclass(np.ndarray):
    """An array with a mind of its own: its products are wrong."""

    def __matmul__(self, other):
        return NotImplemented

    def __array_finalize__(self, other):
        self.note = getattr(other, "note", None)


@dataclasses.dataclass
class Column:
    """What a column of a data frame is to NumPy: an object that can be made an array."""

    values: object
    dtype: object = None
    __array_ufunc__ = None

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __len__(self):
        return len(self.values)


class MaskedColumn(Column):
    """A column with missing values."""

    def __array__(self, dtype=None, copy=None):
        return self.values


class Broken:
    """An object that refuses to become an array, as a tensor on a GPU does."""

    __array_ufunc__ = None

    def __array__(self, dtype=None, copy=None):
        raise TypeError("cannot convert a tensor on cuda:0 to NumPy")


def masked(v, k=1):
    return np.ma.array(v, mask=np.arange(len(v)) < k)


def block(v):
    return np.stack([v, 2 * v], axis=1)


def full(value, dtype=None):
    return lambda v: np.full(v.shape, value, dtype or v.dtype)


def with_entry(value):
    def make(v):
        v = v.copy()
        v[1] = value
        return v

    return make


def wide(value):
    """A vector in double precision."""
    return lambda v: np.full(v.shape, value, np.result_type(v.dtype, np.float64))


def integers(dtype):
    info = np.iinfo(dtype)
    return lambda v: np.array([info.min, info.max, 1, 0][: len(v)], dtype)


SHAPES = {
    "vector": Case(lambda v: v),
    "column (n, 1)": Case(lambda v: v[:, None]),
    "row (1, n)": Case(lambda v: v[None]),
    "block (n, 2)": Case(block),
    "rows (2, n)": Case(lambda v: block(v).T),
    "no columns (n, 0)": Case(lambda v: v[:, None][:, :0]),
    "three dimensions (2, 2, n)": Case(lambda v: np.stack([block(v).T] * 2)),
    "three dimensions (n, 2, 2)": Case(lambda v: np.stack([block(v)] * 2, axis=2)),
    "four dimensions (1, 1, 1, n)": Case(lambda v: v[None, None, None]),
    "0-d": Case(lambda v: v[0].reshape(())),
    "NumPy scalar": Case(lambda v: v[0]),
    "Python float": Case(lambda v: 1.5),
    "empty": Case(lambda v: v[:0]),
    "too long": Case(lambda v: np.append(v, v)),
    "too short": Case(lambda v: v[1:]),
    "device array, too long": Case(lambda v: jnp.append(jnp.asarray(v), 1)),
    "device array (n, 2)": Case(lambda v: jnp.asarray(block(v))),
    "device array (2, 2, n)": Case(lambda v: jnp.stack([jnp.asarray(block(v).T)] * 2)),
    "device array, 0-d": Case(lambda v: jnp.asarray(v[0])),
}


CASES = SHAPES | {
    # Memory.
    "read-only": Case(frozen),
    "strided": Case(lambda v: strided(v, 2)),
    "negative strides": Case(lambda v: strided(v, -1)),
    "stride 0 (broadcast)": Case(lambda v: np.broadcast_to(v[:1], v.shape)),
    "Fortran order": Case(lambda v: np.asfortranarray(block(v))),
    "block with negative strides": Case(lambda v: block(v)[::-1, ::-1]),
    "unaligned": Case(unaligned),
    "memory-mapped": Case(on_disk),
    "memory-mapped, read-only": Case(lambda v: on_disk(v, "r")),
    "a field of a record array": Case(lambda v: np.rec.fromarrays([v, v], names="a,b")["a"]),
    # Kinds of array.
    "np.matrix, column": Case(lambda v: np.asmatrix(v).T),
    "np.matrix, row": Case(lambda v: np.asmatrix(v)),
    "ndarray subclass": Case(lambda v: v.view(Subclass)),
    "list": Case(lambda v: v.tolist(), mv=TREE),
    "tuple": Case(lambda v: tuple(v.tolist()), mv=TREE),
    "list of NumPy scalars": Case(list, mv=TREE),
    "list of rows": Case(lambda v: block(v).tolist(), mv=TREE),
    "range": Case(lambda v: range(len(v))),
    "array.array": Case(lambda v: array.array("d", range(len(v)))),
    "memoryview": Case(lambda v: memoryview(v.real.copy())),
    "deque": Case(lambda v: collections.deque(v.tolist())),
    "object with `__array__`": Case(Column),
    "object with `__array__`, of dtype object": Case(lambda v: Column(v.astype(object)), NOT_NUMBERS, LEAF),
    "object with `__array__` that fails": Case(lambda v: Broken(), NOT_NUMBERS, "cannot convert a tensor"),
    "masked array, nothing masked": Case(lambda v: np.ma.array(v)),
    "masked array": Case(masked, MASKED),
    "masked array, all masked": Case(lambda v: masked(v, len(v)), MASKED),
    "masked array, a block": Case(lambda v: np.ma.array(block(v), mask=block(v) == v[1]), MASKED),
    "masked integers": Case(lambda v: masked(np.arange(len(v))), MASKED),
    "masked array in a list": Case(lambda v: [masked(block(v)[i]) for i in range(len(v))], MASKED, TREE),
    "object whose `__array__` is masked": Case(lambda v: MaskedColumn(masked(v)), MASKED),
    # Sparse.
    "sparse matrix": Case(lambda v: scipy.sparse.csr_matrix(block(v)), methods=NOT_NUMBERS, mv=TREE),
    "sparse array": Case(lambda v: scipy.sparse.csc_array(block(v)), methods=NOT_NUMBERS, mv=TREE),
    "sparse column": Case(lambda v: scipy.sparse.coo_array(v[:, None]), methods=NOT_NUMBERS, mv=TREE),
    "sparse rows": Case(lambda v: scipy.sparse.csr_array(block(v).T), methods=NOT_NUMBERS, mv=TREE),
    "sparse vector, 1-d": Case(scipy.sparse.coo_array, f"{NOT_NUMBERS}|{SPARSE_VECTOR}", LEAF),
    "sparse array of JAX": Case(
        lambda v: jax_sparse.BCOO((block(v).ravel(), np.argwhere(block(v) == block(v))), shape=block(v).shape),
        NOT_NUMBERS,
        TREE,
        left="got <class 'linops",
    ),
    # Dtypes.
    "bool": Case(lambda v: np.arange(len(v)) % 2 == 0),
    **{
        f"{dtype}, with extremes": Case(integers(dtype))
        for dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "float16": Case(lambda v: v.real.astype(np.float16)),
    "bfloat16": Case(lambda v: v.real.astype(jnp.bfloat16)),
    "float8": Case(lambda v: v.real.astype(jnp.float8_e4m3fn)),
    "float32": Case(lambda v: v.real.astype(np.float32)),
    "float64": Case(lambda v: v.real.astype(np.float64)),
    "long double": Case(lambda v: v.real.astype(np.longdouble)),
    "long double, beyond double": Case(lambda v: np.full(v.shape, "1e400", np.longdouble), TOO_LARGE, RIGHT),
    "complex": Case(complex_vector),
    "big-endian": Case(lambda v: v.astype(v.dtype.newbyteorder(">"))),
    "big-endian, another dtype": Case(lambda v: v.real.astype(">f2")),
    "big-endian integers": Case(lambda v: np.arange(len(v)).astype(">i4")),
    **{
        f"device array, {dtype}": Case(lambda v, dtype=dtype: jnp.arange(len(v)).astype(dtype))
        for dtype in ("bool", "int8", "uint32", "float16", "bfloat16", "float32", "float8_e5m2")
    },
    "random key of JAX": Case(lambda v: jax.random.split(jax.random.key(0), len(v)), NOT_NUMBERS, LEAF),
    "strings": Case(lambda v: np.array(["1"] * len(v)), NOT_NUMBERS, LEAF),
    "strings of variable width": Case(lambda v: np.array(["1"] * len(v), np.dtypes.StringDType()), NOT_NUMBERS, LEAF),
    "bytes": Case(lambda v: np.array([b"1"] * len(v)), NOT_NUMBERS, LEAF),
    "list of strings": Case(lambda v: ["1"] * len(v), NOT_NUMBERS, TREE),
    "text": Case(lambda v: "text", NOT_NUMBERS),
    "object": Case(lambda v: v.astype(object), NOT_NUMBERS, LEAF),
    "object, with None": Case(lambda v: np.array([None] * len(v)), NOT_NUMBERS, LEAF),
    "datetime": Case(lambda v: np.arange(len(v)).astype("M8[s]"), NOT_NUMBERS, LEAF),
    "timedelta": Case(lambda v: np.arange(len(v)).astype("m8[s]"), NOT_NUMBERS, LEAF),
    "structured": Case(lambda v: np.zeros(len(v), [("a", "f4"), ("b", "f4")]), NOT_NUMBERS, LEAF),
    "record array": Case(lambda v: np.rec.fromarrays([v, v], names="a,b"), NOT_NUMBERS, LEAF),
    "void": Case(lambda v: np.zeros(len(v), "V4"), NOT_NUMBERS, LEAF),
    "None": Case(lambda v: None, NOT_NUMBERS, TREE),
    "dict": Case(lambda v: {"a": v}, NOT_NUMBERS, TREE),
    "set": Case(lambda v: set(v.tolist()), NOT_NUMBERS),
    "generator": Case(lambda v: (x for x in v), NOT_NUMBERS),
    "function": Case(lambda v: len, NOT_NUMBERS),
    "ragged list": Case(lambda v: [[1.0, 2.0], *[[1.0]] * (len(v) - 1)], NOT_NUMBERS, TREE),
    "decimals": Case(lambda v: [decimal.Decimal(1)] * len(v), NOT_NUMBERS, TREE),
    "fractions": Case(lambda v: [fractions.Fraction(1, 3)] * len(v), NOT_NUMBERS, TREE),
    "integers that no dtype holds": Case(lambda v: [10**400] * len(v), NOT_NUMBERS, TREE),
    "integers beyond 64 bits": Case(lambda v: [2**70] * len(v), NOT_NUMBERS, TREE),
    "integers beyond int64": Case(lambda v: [2**63] * len(v), mv=TREE),
    # Values.
    "-0.0": Case(full(-0.0)),
    "tiny": Case(full(1e-30)),
    "smallest normal": Case(lambda v: np.full(v.shape, np.finfo(v.dtype).tiny, v.dtype)),
    "denormal": Case(lambda v: np.full(v.shape, np.finfo(v.dtype).smallest_subnormal, v.dtype)),
    "denormal float16": Case(full(6e-8, np.float16)),
    "1e-300, double": Case(wide(1e-300)),
    "1e30": Case(full(1e30)),
    "1e300, double": Case(wide(1e300), mv=RIGHT, single=TOO_LARGE),
    "largest number": Case(lambda v: np.full(v.shape, np.finfo(v.dtype).max, v.dtype), OVERFLOW, RIGHT),
    "a block with 1e300, double": Case(lambda v: block(wide(1e300)(v)), single=TOO_LARGE),
    "NaN": Case(with_entry(np.nan)),
    "Inf": Case(with_entry(np.inf)),
    "-Inf in a list": Case(lambda v: with_entry(-np.inf)(v.real).tolist(), mv=TREE),
    "NaN in a block": Case(lambda v: block(with_entry(np.nan)(v))),
    "NaN on the device": Case(lambda v: jnp.asarray(with_entry(np.nan)(v))),
    "NaN, float16": Case(full(np.nan, np.float16)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::linops.PrecisionWarning")  # that digits are lost is said, and tested elsewhere
@pytest.mark.filterwarnings("ignore:shape requires ndarray:DeprecationWarning")  # JAX, asked for the shape of no array
@pytest.mark.filterwarnings("ignore:Python iterable type:DeprecationWarning")  # JAX, of generators
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # NumPy, of 1e300 in float32
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # np.matrix
def test_vectors(name, pytestconfig):
    """Every way, with one of the operators in turn; with all, where the table is run whole."""
    for turn, way in enumerate(WAYS, zlib.crc32(name.encode())):
        for dtype in OPERATORS if pytestconfig.getoption("--whole") else [OPERATORS[turn % len(OPERATORS)]]:
            with jax.enable_x64(dtype in ("float64", "complex128")):
                check(CASES[name], way, dtype)


def check(case, way_name, dtype):
    """Fail unless a case comes to what it says."""
    A, D = operator(dtype)
    way = WAYS[way_name]
    v = vector(A.shape[0 if way.left else 1], dtype)
    value, expected = case.make(v), case.expected(way_name, dtype)
    if expected == RIGHT and not way.takes(shape_of(value), len(v)):
        expected = way.mismatch
    elif expected != RIGHT:
        expected += f"|{way.mismatch}"
    product, error = outcome_of(way, A, value)
    if expected == RIGHT:
        assert error is None, f"{way_name}, {dtype}: {error}"
        numbers = dense(case.make(v))
        with np.errstate(invalid="ignore", over="ignore"):
            compare(product, way.dense(D, numbers), way.dense(abs(D), abs(numbers)), dtype)
    else:
        assert error is not None, f"{way_name}, {dtype}: {product} is no error; expected {expected}"
        assert re.search(expected, str(error), re.DOTALL), f"{way_name}, {dtype}: {error}"


def outcome_of(way, A, value):
    """The product, or one of the three errors that bad input may come to."""
    try:
        return way.call(A, value), None
    except (TypeError, ValueError, FloatingPointError) as error:
        return None, error


def vector(k, dtype):
    v = np.arange(1, k + 1) / 4
    return (v * (1 + 0.5j) if np.dtype(dtype).kind == "c" else v).astype(dtype)


def shape_of(value):
    return value.shape if hasattr(value, "shape") else np.shape(np.asarray(value))


def dense(value):
    """The numbers that a case means, in double precision."""
    return (value.toarray() if scipy.sparse.issparse(value) else np.asarray(value)).astype(np.complex128)


def compare(product, expected, scale, dtype):
    """To the rounding of the operator's dtype; what is beyond its range, or NaN in the vector, is not finite."""
    if isinstance(product, LinearOperator):  # with a sparse matrix
        product = product @ np.eye(product.shape[1], dtype=product.dtype)
    product = np.asarray(product)
    info = np.finfo(dtype)
    assert product.shape == expected.shape
    assert np.issubdtype(product.dtype, np.inexact)
    finite = abs(expected) < info.max
    np.testing.assert_array_equal(np.isfinite(product), finite)
    assert np.all(abs(product - expected)[finite] <= 16 * (info.eps * scale.real[finite] + info.tiny))


def shape_table():
    """For each shape the ways that take it; the others say which shapes they take."""
    v = vector(4, "float32")
    for name, case in SHAPES.items():
        yield name, [way for way, takes in WAYS.items() if takes.takes(shape_of(case.make(v)), len(v))]


def table():
    """The other cases by what comes of them."""
    rows = {}
    for name, case in CASES.items():
        if name not in SHAPES:
            said = "the right product" if case.outcome == RIGHT else say(case.outcome)
            rows.setdefault(said + (f"; in float32 {say(case.single)}" if case.single else ""), []).append(name)
    return rows


def say(words):
    """The words of an error, without the signs of a regular expression."""
    return f'"... {re.sub(r"[(]an array of [)][?]|[|].*", "", words).replace(".*", "...")}"'


if __name__ == "__main__":
    for left, right in [*shape_table(), *table().items()]:
        print(f"{left}:\n    {'; '.join(right)}")
