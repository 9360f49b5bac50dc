"""Training by damped Gauss-Newton steps, beside Adam at three rates.

A 64-16-10 tanh network learns a fourth of scikit-learn's digits, all images in each step. Linearized around its
weights w, the mean cross-entropy L has the Gauss-Newton matrix G, and the step s of damping mu solves

    (G + mu I) s = -grad L.

`linops.linalg.cg` finds it to one digit, from products with G, preconditioned by `linops.precondition.nystrom`, which
has some eigenvectors of G from random products and is made anew every fifth step. By how much the loss falls, relative
to what the step promised, mu is adapted (Nielsen, 1999), by a factor of 1/3 at best. There is no rate to be tuned.

Costs are counted in gradients; a product is two, at most. One sees that Adam, at the best of its rates, is ahead until
the loss is below 0.001. From there it falls ever more slowly, and that of Gauss-Newton by a factor of nearly three in
each step. At the rate of 0.001 that Adam has by default it is far behind.

Martens, *Deep learning via Hessian-free optimization* (2010); Schraudolph, *Fast curvature matrix-vector products*
(2002); Frangella, Tropp and Udell, *Randomized Nystroem preconditioning* (2023).
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import linops
from linops.linalg import cg
from linops.precondition import nystrom

STEPS, EVERY, RANK = 20, 5, 32
RATES = 1e-3, 1e-2, 1e-1


def model(w, images):
    first, second = w[: 65 * 16].reshape(65, 16), w[65 * 16 :].reshape(17, 10)
    return jnp.tanh(images @ first[1:] + first[0]) @ second[1:] + second[0]


def cross_entropy(outputs, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1))


def loss(w, images, labels):
    return cross_entropy(model(w, images), labels)


def gauss_newton(w, images, labels):
    return linops.GaussNewton(model, w, lambda outputs: cross_entropy(outputs, labels), args=(images,))


@jax.jit
def precondition(w, mu, key, *data):
    return nystrom(gauss_newton(w, *data), mu, rank=RANK, key=key)


@jax.jit
def step(w, mu, M, *data):
    value, gradient = jax.value_and_grad(loss)(w, *data)
    A = gauss_newton(w, *data) + mu * linops.Identity(w.size)
    change, _, record = cg(A, gradient, M=M, rtol=0.1, maxiter=200, full_output=True)
    gain = (value - loss(w - change, *data)) / (change @ gradient - change @ (A @ change) / 2)
    mu = mu * jnp.where(gain > 0, jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3), 4)
    return jnp.where(gain > 0, w - change, w), mu, value, record.matvecs


def by_gauss_newton(w, *data):
    """Losses, and the gradients that each took."""
    mu, spent, values, costs = np.array(0.1), 0, [], []
    for i in range(STEPS):
        if i % EVERY == 0:
            M = precondition(w, mu, jax.random.key(i), *data)
            spent += 2 * RANK
        w, mu, value, products = step(w, mu, M, *data)
        values.append(float(value))
        costs.append(spent)
        spent += 2 * int(products) + 4  # a gradient, a loss, and a product for what was promised
    return np.array(values), np.array(costs)


@jax.jit
def by_adam(rate, w, *data):
    def step(state, t):
        w, m, v = state
        value, gradient = jax.value_and_grad(loss)(w, *data)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        change = m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return (w - rate * change, m, v), value

    return jax.lax.scan(step, (w, 0 * w, 0 * w), jnp.arange(1.0, 1001))[1]


def timed(function, *args):
    """The result, and how long it takes once compiled."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return result, min(times)


def main(plot=None):
    with jax.enable_x64(True):
        images, labels = load_digits(return_X_y=True)
        data = images[::4] / 16, labels[::4]
        draws = np.random.default_rng(0)
        first = np.concatenate([np.zeros((1, 16)), draws.standard_normal((64, 16)) / 8])  # the first row: biases
        second = np.concatenate([np.zeros((1, 10)), draws.standard_normal((16, 10)) / 4])
        w = jnp.array([*first.ravel(), *second.ravel()])
        (values, costs), seconds = timed(by_gauss_newton, w, *data)
        runs = {"Gauss-Newton": (values, costs, seconds * costs / costs[-1])}
        for rate in RATES:
            values, seconds = timed(by_adam, rate, w, *data)
            steps = np.arange(len(values))
            runs[f"Adam, rate {rate}"] = (np.asarray(values), steps, seconds * steps / steps[-1])

    budgets = 100, 300, 900
    print("loss after so many gradients" + "".join(f"{budget:9}" for budget in budgets) + "   seconds for all")
    table = {}
    for name, (values, costs, seconds) in runs.items():
        table[name] = [values[costs <= budget].min() for budget in budgets]
        print(f"{name:28}" + "".join(f"{value:9.0e}" for value in table[name]) + f"{seconds[-1]:12.2f}")
    if plot:
        draw(plot, runs)
    return table


def draw(path, runs):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for i, (name, (values, *costs)) in enumerate(runs.items()):
        for panel, cost in zip(axes, costs, strict=True):
            panel.plot(cost, values, "-" if i else ".-", label=name, color=("C3", "#9ecae1", "#4292c6", "#08519c")[i])
    axes[0].set(yscale="log", ylabel="loss", xlabel="gradients, or as much", xlim=(0, 1000), ylim=(1e-7, 5))
    axes[1].set(xlabel="seconds")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def check(table):
    newton, *adams = table.values()
    assert newton[-1] < 1e-6 < 20 * newton[-1] < min(adam[-1] for adam in adams), "far ahead in the end"
    assert newton[0] > min(adam[0] for adam in adams), "not in the beginning"
    assert newton[1] < adams[0][1] / 20, "far ahead of the default rate"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
