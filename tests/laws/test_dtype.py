"""The dtype of a product is the operator's, which is the one computed in; device arrays stay on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linops


def test_the_dtype_is_claimed_and_kept(pair, dtype):
    """That products have it stands with their numbers, in `test_dense_agreement`."""
    A, _ = pair
    real = np.zeros(0, A.dtype).real.dtype
    half = np.dtype(np.float16) in (*A.domain.dtypes, *A.codomain.dtypes)  # the least precise leaf is what is claimed
    assert real == (np.float16 if half else dtype)
    assert (2.5 * A).dtype == (np.float64(2.5) * A).dtype == (A * jnp.float32(2)).dtype == A.dtype


def test_wider_vectors_are_narrowed_with_one_warning(pair, vectors, dtype, close):
    (A, D), (v, _, _) = pair, vectors
    if dtype is np.float64:
        return
    A = A._replace()  # a new operator, that has not warned yet
    wide = v.astype(np.result_type(v.dtype, np.float64))
    with pytest.warns(linops.PrecisionWarning, match=r"jax_enable_x64") as record:
        product = A @ wide
        A @ wide
    assert len(record) == 1
    assert record[0].filename == __file__
    assert product.dtype == A.dtype
    close(product, D @ wide)


def test_no_transfer_to_the_host(pair, vectors, close):
    (A, D), (v, V, w) = pair, vectors
    on_device = [jnp.asarray(array) for array in (v, V, w)]
    for warm in (True, False):
        A = A._replace()  # which is to be prepared anew
        with jax.transfer_guard("allow" if warm else "disallow"):
            v_, V_, w_ = on_device
            products = [A @ v_, A @ V_, A.T @ w_, A.rmatvec(w_), jax.jit(lambda A, v: A @ v)(A, v_)]
            trees = A.mv(A.domain.unravel(v_)) if A.domain.is_flat else None
    assert all(isinstance(product, jax.Array) for product in products)
    close(products[0], D @ v)
    close(products[1], D @ V)
    assert trees is None or all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trees))
