"""Every law runs over every operator of the zoo, or over those with a trait, in float32 or in float64 in turn.

A law that asks for nothing else of the precision is the same code for both, so that each operator goes with one of
them; products with vectors are tried in both.
"""

import jax
import numpy as np
import operators
import pytest


def pytest_collection_modifyitems(items):
    """Run before those of the suite's own conftest, which makes the cover."""
    for item in items:
        if "laws" in item.path.parts and item.originalname not in BOTH and "dtype" in _parameters(item):
            item.add_marker(pytest.mark.covering("dtype"))
            if item.originalname in OF_KINDS:
                item.add_marker(pytest.mark.covering("name", row=operators.kind(_parameters(item)["name"])))


def _parameters(item):
    return getattr(getattr(item, "callspec", None), "params", {})


# Laws of what is made of operators, of how they are called, and of what judges them: they go over one operator of each
# kind, that of dense matrices over all.
OF_KINDS = {
    "test_combinations", "test_power", "test_argument_of_jit", "test_argument_of_vmap", "test_argument_of_grad",
    "test_check", "test_another_point", "test_no_transfer_to_the_host", "test_complex_vector", "test_foreign_operands",
}  # fmt: skip
BOTH = {"test_vector", "test_wider_vectors_are_narrowed_with_one_warning"}  # precisions


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture(params=operators.where(made_for="laws"))
def name(request):
    """Of an operator."""
    return request.param


@pytest.fixture
def pair(name, dtype):
    """An operator and its dense matrix."""
    return operators.build(name, dtype)


@pytest.fixture
def close(pair):
    """Compare within the rounding error of the operator's dtype: 64 units, half precision where a leaf has it.

    The unit of products by differences is larger.
    """
    operator, dense = pair
    dtypes = {*operator.domain.dtypes, *operator.codomain.dtypes}
    eps = max(operator._unit, *(float(jax.numpy.finfo(d).eps) for d in dtypes))
    scale = max(1.0, np.abs(dense).max(initial=0.0))

    def check(got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=64 * eps, atol=64 * eps * scale * max(dense.shape))

    return check


@pytest.fixture
def vectors(pair):
    """A right-hand vector v and block V, and a left-hand vector w, of the operator's dtype."""
    operator, _ = pair
    rng = np.random.default_rng(11)

    def draw(*shape):
        array = rng.normal(size=shape)
        if np.issubdtype(operator.dtype, np.complexfloating):
            array = array + 1j * rng.normal(size=shape)
        return array.astype(operator.dtype)

    m, n = operator.shape
    return draw(n), draw(n, 3), draw(m)
