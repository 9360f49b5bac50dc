"""What a GPU is asked beside the rows: the precision of float32 products there, and that nothing goes by the host.

    python benchmarks/gpu.py

- precision: the distance of products from those in float64, relative, of linops and of the bare jitted product; on
  GPUs since Ampere JAX multiplies float32 matrices in TF32 unless it is told otherwise, and linops tells it.
- transfers: what runs whole under a guard that refuses every copy between host and device.

The rows of products and blocks, eigenvalues and data run on a GPU as they are: `python benchmarks --rows
"digits network,columns,overhead"`, `python benchmarks/eigenvalues.py`, `python benchmarks/data.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import problems

import linops


def _float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _distance(product, exact):
    return float(np.linalg.norm(np.asarray(product, np.float64).ravel() - exact) / np.linalg.norm(exact))


def precision():
    """Relative errors of a Hessian's product, of linops and by hand, beside eps."""
    print("precision: ||product - that in float64|| / ||that in float64||; eps is 1.2e-7")
    X = problems.normal((1797, 64), 3)
    for n, layers in problems.LAYERS.items():
        weights = problems.digits(layers)[2]
        v = problems.normal(n)

        def loss(weights, X):
            return jnp.mean(jax.nn.logsumexp(problems.tanh_network(weights, X), axis=1) ** 2)

        with jax.enable_x64(True):
            exact = linops.Hessian(loss, _float64(weights), args=(_float64(X),)) @ v.astype(np.float64)
        point, unravel = jax.flatten_util.ravel_pytree(weights)
        H = linops.Hessian(loss, weights, args=(X,))

        def bare(x, v, unravel=unravel):
            return problems.hessian_vector(lambda x: loss(unravel(x), X))(x, v)

        default = jax.jit(bare)(point, v)
        with jax.default_matmul_precision("float32"):
            full = jax.jit(bare)(point, v)
        print(
            f"    Hessian, n = {n:9,}: linops {_distance(H @ v, exact):.1e}, by hand {_distance(default, exact):.1e}, "
            f"by hand in float32 {_distance(full, exact):.1e}",
            flush=True,
        )
        if n < 10_000:
            print("    " + str(linops.check(H)).replace("\n", "\n    "))


def transfers():
    """What runs under a guard, once it is compiled."""
    n = 85_002
    H, _, _, weights = problems.hessian(n)
    model, loss, _ = problems.digits(problems.LAYERS[n])
    G = linops.GaussNewton(model, weights, loss)
    v, V = jnp.asarray(problems.normal(n)), jnp.asarray(problems.normal((n, 8)))
    shift = jnp.float32(0.1)
    key = jax.random.key(0)
    A = G + shift * linops.Identity(n)
    eigsh = jax.jit(lambda H, v: linops.linalg.eigsh(H, k=10, which="LA", v0=v, full_output=True)[0])
    cg = jax.jit(lambda A, v: linops.linalg.cg(A, v, rtol=1e-4)[0])
    trace = jax.jit(lambda H, key: linops.estimate.trace(H, key, num_matvecs=16).value)
    calls = {
        "H @ v": lambda: H @ v,
        "H @ V, 8 columns": lambda: H @ V,
        "H.mv(tree)": lambda: H.mv(weights),
        "jitted eigsh, k = 10": lambda: eigsh(H, v),
        "jitted cg": lambda: cg(A, v),
        "jitted trace": lambda: trace(H, key),
    }
    print("transfers: under jax.transfer_guard('disallow')")
    for name, call in calls.items():
        jax.block_until_ready(call())
        try:
            with jax.transfer_guard("disallow"):
                jax.block_until_ready(call())
            said = "none"
        except RuntimeError as error:
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        print(f"    {name:24} {said}", flush=True)


def main():
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}")
    precision()
    transfers()


if __name__ == "__main__":
    main()
