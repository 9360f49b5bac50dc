"""The Statistical Reference Datasets for nonlinear regression: 27 problems whose fits NIST certified to 11 digits.

The files in `strd/` are those that the National Institute of Standards and Technology publishes at
https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, as lmfit's source distribution carries them; a work of the
government of the United States, they are in the public domain. Each states its model, two starts, of which the second
is nearer, and the certified values.

Lanczos1 has residuals of 1e-13 beside values of 1: in float64 their sum of squares has three digits, and so have
standard deviations, whatever the method.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Regression:
    """Data y at x, p parameters from two starts, and the certified fit. Nelson's y is log(y), and its x of two rows."""

    name: str
    model: Callable[[Array, Array], Array]  # of parameters of shape (p,), and x
    x: np.ndarray  # of shape (m,) or (2, m)
    y: np.ndarray
    starts: np.ndarray  # of shape (2, p)
    parameters: np.ndarray
    standard_deviations: np.ndarray  # of the parameters
    sum_of_squares: float  # of the residuals

    @property
    def degrees_of_freedom(self):
        return self.y.size - self.parameters.size  # Rat43's file says 9, but its certified values are those of 11

    def residuals(self, parameters):
        """The model less y, in the precision of the parameters."""
        parameters = jnp.asarray(parameters)
        x, y = (jnp.asarray(data, parameters.dtype) for data in (self.x, self.y))
        return self.model(parameters, x) - y


def _bennett5(b, x):
    return b[0] * (b[1] + x) ** (-1 / b[2])


def _saturation(b, x):
    return -b[0] * jnp.expm1(-b[1] * x)


def _chwirut(b, x):
    return jnp.exp(-b[0] * x) / (b[1] + b[2] * x)


def _dan_wood(b, x):
    return b[0] * x ** b[1]


def _enso(b, x):
    year, first, second = (2 * np.pi * x / period for period in (12, b[3], b[6]))
    return (
        b[0] + b[1] * jnp.cos(year) + b[2] * jnp.sin(year)
        + b[4] * jnp.cos(first) + b[5] * jnp.sin(first)
        + b[7] * jnp.cos(second) + b[8] * jnp.sin(second)
    )  # fmt: skip


def _eckerle4(b, x):
    return b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2)


def _gauss(b, x):
    first, second = (height * jnp.exp(-(((x - center) / width) ** 2)) for height, center, width in (b[2:5], b[5:8]))
    return b[0] * jnp.exp(-b[1] * x) + first + second


def _rational(degree):
    """Polynomials of one degree over each other, the constant below being 1."""

    def model(b, x):
        powers = x ** np.arange(1, degree + 1)[:, None]
        return (b[0] + b[1 : degree + 1] @ powers) / (1 + b[degree + 1 :] @ powers)

    return model


def _lanczos(b, x):
    return b[::2] @ jnp.exp(-b[1::2, None] * x)


def _mgh09(b, x):
    return b[0] * x * (x + b[1]) / (x * (x + b[2]) + b[3])


def _mgh10(b, x):
    return b[0] * jnp.exp(b[1] / (x + b[2]))


def _mgh17(b, x):
    return b[0] + b[1] * jnp.exp(-b[3] * x) + b[2] * jnp.exp(-b[4] * x)


def _misra1b(b, x):
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def _misra1c(b, x):
    return b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5)


def _misra1d(b, x):
    return b[0] * b[1] * x / (1 + b[1] * x)


def _nelson(b, x):
    time, temperature = x
    return b[0] - b[1] * time * jnp.exp(-b[2] * temperature)


def _rat42(b, x):
    return b[0] / (1 + jnp.exp(b[1] - b[2] * x))


def _rat43(b, x):
    return b[0] * (1 + jnp.exp(b[1] - b[2] * x)) ** (-1 / b[3])


def _roszman1(b, x):
    return b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / np.pi


MODELS = {
    # of lower difficulty, says NIST
    "Misra1a": _saturation, "Chwirut2": _chwirut, "Chwirut1": _chwirut, "Lanczos3": _lanczos, "Gauss1": _gauss,
    "Gauss2": _gauss, "DanWood": _dan_wood, "Misra1b": _misra1b,
    # average
    "Kirby2": _rational(2), "Hahn1": _rational(3), "Nelson": _nelson, "MGH17": _mgh17, "Lanczos1": _lanczos,
    "Lanczos2": _lanczos, "Gauss3": _gauss, "Misra1c": _misra1c, "Misra1d": _misra1d, "Roszman1": _roszman1,
    "ENSO": _enso,
    # higher
    "MGH09": _mgh09, "Thurber": _rational(3), "BoxBOD": _saturation, "Rat42": _rat42, "MGH10": _mgh10,
    "Eckerle4": _eckerle4, "Rat43": _rat43, "Bennett5": _bennett5,
}  # fmt: skip


def _read(name, model):
    """The problem in a file of NIST: certified values in lines `b1 = start start value deviation`, then columns."""
    text = (Path(__file__).parent / "strd" / f"{name}.dat").read_text()
    certified = np.array([line.split() for line in re.findall(r"^\s*b\d+ =(.*)", text, re.MULTILINE)], float)
    y, *x = np.array(text[text.rindex("Data:") :].split("\n", 1)[1].split(), float).reshape(_rows(text), -1).T
    return Regression(
        name=name,
        model=model,
        x=np.array(x) if len(x) > 1 else x[0],
        y=np.log(y) if "log[y]" in text else y,
        starts=certified[:, :2].T,
        parameters=certified[:, 2],
        standard_deviations=certified[:, 3],
        sum_of_squares=float(re.search(r"Residual Sum of Squares:\s*(\S+)", text)[1]),
    )


def _rows(text):
    return int(re.search(r"(\d+) Observations", text)[1])


PROBLEMS = {name: _read(name, model) for name, model in MODELS.items()}
