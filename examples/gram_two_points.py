"""J(x1) J(x2)^T, few outputs and many inputs: gradients before training against gradients after.

A 64-61-90-5 tanh network, with 10,000 weights, tells the digits 0 to 4 apart. Let f(w) be its mean losses on the images
of each of the five classes, so that f has 10,000 inputs and M = 5 outputs, and row i of the Jacobian J(w) is the
gradient of class i. The 5 by 5 matrix

    K = J(w1) J(w2)^T,   K[i, j] = grad f_i(w1) . grad f_j(w2)

says how far the gradients at two points agree: here at the random weights w1, and at the trained weights w2. Divided by
the lengths of the gradients it is a table of cosines.

K is computed in two ways. Direct: two dense Jacobians of 5 by 10,000, multiplied. Matrix-free: `linops.JacobianGram`,
of which one product is a vector-Jacobian product at w2 and a Jacobian-vector product at w1; no Jacobian is formed. One
sees that they agree to rounding, and what they cost. With so few outputs the dense Jacobians are small, and all of K is
found sooner the direct way; one product, all that an iterative solver asks for, is several times cheaper. And what the
direct way stores, two Jacobians of M times the size of the weights, grows with M: the matrix-free way stores none.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import linops

LAYERS = (64, 61, 90, 5)


def class_losses(params, images, labels):
    """The mean cross-entropy on the images of each class, of shape (5,)."""
    for W, b in params[:-1]:
        images = jnp.tanh(images @ W + b)
    W, b = params[-1]
    log_probabilities = jax.nn.log_softmax(images @ W + b)
    one_hot = jax.nn.one_hot(labels, LAYERS[-1])
    return -jnp.sum(one_hot * log_probabilities, axis=0) / jnp.sum(one_hot, axis=0)


def best_time(function, repeats=20):
    """The result, and the shortest of several times in milliseconds, after a first call that compiles."""
    result, times = jax.block_until_ready(function()), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - start))
    return result, min(times)


def main():
    with jax.enable_x64(True):
        images, labels = load_digits(n_class=5, return_X_y=True)
        data = (jnp.asarray(images / 16), jnp.asarray(labels))
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = zip(keys, LAYERS[:-1], LAYERS[1:], strict=True)
        initial = [(jax.random.normal(key, (n, m)) / np.sqrt(n), jnp.zeros(m)) for key, n, m in shapes]
        space = linops.Space.of(initial)

        def f(w):
            return class_losses(space.unravel(w), *data)

        w1 = np.asarray(space.ravel(initial))
        loss = jax.jit(jax.value_and_grad(lambda w: jnp.mean(f(w))))
        trained = minimize(loss, w1, jac=True, method="L-BFGS-B", options={"maxiter": 10})
        w2 = trained.x

        jacobian = jax.jit(jax.jacobian(f))
        direct, direct_time = best_time(lambda: np.asarray(jacobian(w1) @ jacobian(w2).T))

        # At each point the operator keeps the intermediate values of the forward pass, which all products share.
        K, v = linops.JacobianGram(f, w1, w2), np.ones(5)
        matrix_free, matrix_free_time = best_time(lambda: K.at(w1, w2).toarray())
        product, product_time = best_time(lambda: K @ v)

        def difference(A, B):
            return np.abs(A - B).max() / np.abs(B).max()

        differences = {
            "K": difference(matrix_free, direct),
            "K v": difference(product, direct @ v),
            "K.T": difference(K.T.toarray(), direct.T),
        }
        lengths = [np.sqrt(K.at(w, w).diagonal()) for w in (w1, w2)]
        cosines = matrix_free / np.outer(*lengths)

    print(f"{space.size} inputs, {len(direct)} outputs; mean loss {trained.fun:.3f} after training")
    print("cosines between the gradients of class i before (rows) and j after (columns):")
    print(np.array2string(cosines, precision=2, suppress_small=True))
    print(f"largest difference, relative: {max(differences.values()):.0e}")
    print(f"all of K, direct:      {direct_time:8.2f} ms")
    print(f"all of K, matrix-free: {matrix_free_time:8.2f} ms, with linearization")
    print(f"one product K v:       {product_time:8.2f} ms")
    return {"differences": differences, "cosines": cosines, "times": (direct_time, matrix_free_time, product_time)}


def check(result):
    assert max(result["differences"].values()) < 1e-12
    assert np.abs(result["cosines"]).max() <= 1
    assert min(np.diag(result["cosines"])) > 0


if __name__ == "__main__":
    main()
