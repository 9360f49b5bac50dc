"""The sharpness of a network, watched through all of its training, for a few products a step.

Gradient descent with the learning rate r makes a quadratic loss smaller only where the largest eigenvalue of its
Hessian, the sharpness, is below 2 / r. A network is not quadratic: in training its sharpness rises until it is there,
goes a little beyond until the loss shoots up, which throws it back, and stays about there, while the valleys of the
loss get lower. That is the edge of stability of Cohen, Kaur, Li, Kolter and Talwalkar, *Gradient descent on neural
networks typically occurs at the edge of stability* (2021).

One sees it with a 64-16-10 network and a square loss on handwritten digits. Every 10 steps `linops.linalg.eigsh` finds
the sharpness to 1 %; each time it starts from the eigenvector before, `v0`, since the weights have hardly moved, and
takes fewer products than from a random vector, as is counted: 14 against some 24, ten of them to see, from a random
vector, that nothing larger was missed. That is less than two products for each step of the training.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import linops
from linops.linalg import eigsh

RATE = 0.6
STEPS_EACH = 10
LOOKS = 80


def loss(weights, images, targets):
    first, second = weights[: 65 * 16].reshape(65, 16), weights[65 * 16 :].reshape(17, 10)
    hidden = jnp.tanh(images @ first[1:] + first[0])
    return jnp.mean(jnp.sum((hidden @ second[1:] + second[0] - targets) ** 2, axis=1)) / 2


@jax.jit
def descend(weights, *data):
    def step(weights, _):
        value, gradient = jax.value_and_grad(loss)(weights, *data)
        return weights - RATE * gradient, value

    return jax.lax.scan(step, weights, length=STEPS_EACH)


def main(plot=None):
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    data = jnp.asarray(images - images.mean(0), jnp.float32), jax.nn.one_hot(labels, 10) - 0.1
    key1, key2 = jax.random.key(0), jax.random.key(1)
    first = jnp.zeros((65, 16)).at[1:].set(jax.random.normal(key1, (64, 16)) / 16)  # the first row: biases
    second = jnp.zeros((17, 10)).at[1:].set(jax.random.normal(key2, (16, 10)) / 8)
    weights = jnp.concatenate([first.ravel(), second.ravel()])

    H = linops.Hessian(loss, weights, args=data)
    v0 = jax.random.normal(jax.random.key(2), (H.shape[0],))
    warm_start, rows, losses = v0, [], []
    print(f"  step     loss   sharpness   of 2 / {RATE} = {2 / RATE:.2f}   products: warm   cold")
    for look in range(LOOKS):
        H = H.at(weights)
        found, warm_start, warm = eigsh(H, k=1, which="LA", tol=0.01, v0=warm_start, full_output=True)
        check_value, _, cold = eigsh(H, k=1, which="LA", tol=0.01, v0=v0, full_output=True)
        weights, values = descend(weights, *data)
        losses.extend(values.tolist())
        sharpness = float(found[0])
        rows.append((sharpness, float(check_value[0]), int(warm.matvecs), int(cold.matvecs)))
        if look % 8 == 0:
            share = 100 * sharpness * RATE / 2
            line = f"{STEPS_EACH * look:6} {values[0]:8.4f} {sharpness:11.3f} {share:17.0f} %"
            print(f"{line} {int(warm.matvecs):16} {int(cold.matvecs):6}")
    sharpness, again, warm, cold = np.array(rows).T
    rises = np.diff(losses) > 0
    print(f"\nproducts for {LOOKS} looks: {warm.sum():.0f} with warm starts, {cold.sum():.0f} without")
    print(f"per step of training: {warm.sum() / len(losses):.1f}")
    print(f"the loss rose at {rises.sum()} of {len(losses)} steps, and fell from {losses[0]:.3f} to {losses[-1]:.3f}")
    if plot:
        draw(plot, sharpness, losses)
    return {"sharpness": sharpness, "again": again, "warm": warm, "cold": cold, "losses": losses, "rises": rises}


def draw(path, sharpness, losses):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.axhline(2 / RATE, color="k", linestyle="--", linewidth=1, label="2 / learning rate")
    above.plot(STEPS_EACH * np.arange(LOOKS), sharpness, color="C0", marker=".", markersize=4, label="sharpness")
    above.set(ylabel="largest eigenvalue", ylim=(0, None))
    above.legend(loc="lower right")
    below.plot(losses, color="C1", linewidth=1)
    below.set(xlabel="step of gradient descent", ylabel="loss", ylim=(0, None))
    figure.savefig(path, dpi=150)


def check(result):
    limit, sharpness, rises = 2 / RATE, result["sharpness"], result["rises"]
    np.testing.assert_allclose(sharpness, result["again"], rtol=0.02)
    assert result["warm"].sum() < 0.8 * result["cold"].sum()
    assert sharpness[0] < 0.7 * limit, "it starts in the stable region,"
    reached = int(np.argmax(sharpness > limit))
    assert 0 < reached < LOOKS / 2 + 10, "comes to its edge,"
    assert 0.85 < np.median(sharpness[reached:]) / limit < 1.15, "and stays there."
    assert not rises[: STEPS_EACH * (reached - 1)].any()
    assert rises.sum() > 50, "From then on the loss is not monotonic,"
    valley = min(result["losses"][-100:])
    assert valley < 0.95 * result["losses"][STEPS_EACH * reached], "and its valleys get lower."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="PATH", help="save a picture there")
    main(**vars(parser.parse_args()))
