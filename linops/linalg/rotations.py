"""The numbers of LSMR: what rotations make of the bidiagonal matrix of Golub and Kahan, in the names of its paper.

Fong and Saunders, "LSMR: an iterative algorithm for sparse least-squares problems", SIAM J. Sci. Comput. 33 (2011).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from linops.linalg.operands import rounding
from linops.linalg.solves import nonzero

DIGITS = 8  # of rounding, below which a residual is nothing
# Why it ended, as SciPy counts, and one more.
GOES_ON = -1
(
    BEGINNING,
    SOLVED,
    LEAST,
    CONDITION,
    SOLVED_AT_BEST,
    LEAST_AT_BEST,
    CONDITION_AT_WORST,
    TIME,
    NO_BETTER,
) = range(9)


class Tolerances(NamedTuple):
    """SciPy's `btol`, `atol`, `conlim`, the norm that `btol` is relative to, and the limit of iterations."""

    btol: jax.Array
    atol: jax.Array
    conlim: jax.Array
    reference: jax.Array
    limit: jax.Array


class Step(NamedTuple):
    """What the vectors h and x go by: hbar = h + on_bar hbar, x = x + on_x hbar, h = v + on_h h."""

    on_bar: jax.Array
    on_x: jax.Array
    on_h: jax.Array


class Rotations(NamedTuple):
    """Of one system. `norm` is that of the residual, `gradient` of Aᴴ times it; `scale` of A, from below.

    `frobenius` and `condition` are estimates, as SciPy returns them.
    """

    alpha: jax.Array
    alphabar: jax.Array
    rho: jax.Array
    rhobar: jax.Array
    cbar: jax.Array
    sbar: jax.Array
    zeta: jax.Array
    zetabar: jax.Array
    betad: jax.Array
    betadd: jax.Array
    rhod: jax.Array
    thetatilde: jax.Array
    tautilde: jax.Array
    largest: jax.Array
    smallest: jax.Array
    beyond: jax.Array  # what damping leaves of the residual
    norm: jax.Array
    gradient: jax.Array
    scale: jax.Array
    frobenius: jax.Array
    condition: jax.Array

    @classmethod
    def begin(cls, alpha, beta):
        """Of the norm of a residual, beta, and that of Aᴴ times it, in shares of beta, alpha."""
        one, none = jnp.ones_like(alpha), jnp.zeros_like(alpha)
        return cls(
            alpha=alpha, alphabar=alpha, rho=one, rhobar=none, cbar=one, sbar=none, zeta=none, zetabar=alpha * beta,
            betad=none, betadd=beta, rhod=one, thetatilde=none, tautilde=none, largest=none, smallest=jnp.inf * one,
            beyond=none, norm=beta, gradient=alpha * beta, scale=alpha, frobenius=alpha, condition=one,
        )  # fmt: skip

    def with_norms(self, other):
        """With what another one knows of A."""
        names = "scale", "frobenius", "condition", "largest", "smallest"
        return self._replace(**{name: getattr(other, name) for name in names})

    def ends(self, A, x, iterations, tolerances):
        """Which of SciPy's rules says to stop, or `GOES_ON`; a residual and what it was compared with.

        In the first rule the norms of A and x count for no more than that of b: an x that goes astray would certify
        itself. In the second one A has the norm that was seen, and not an estimate that grows with each step. What
        rounding adds to a residual, eps ‖A‖ ‖x‖ / 2, counts.
        """
        btol, atol, conlim, reference, limit = tolerances
        eps, least = jnp.finfo(self.norm.dtype).eps, rounding(A, DIGITS)
        size, share = self.scale * A.domain.norm(x), self.scale * self.norm
        noise, dull = eps / 2 * size, eps / 2 * self.scale * (self.norm + size)
        rules = [
            (SOLVED, self.norm, noise, btol * reference + atol * jnp.minimum(size, reference)),
            (LEAST, self.gradient, dull, atol * share),
            (SOLVED_AT_BEST, self.norm, noise, least * reference),
            (LEAST_AT_BEST, self.gradient, dull, least * share),
        ]
        ends = [(jnp.hypot(value, added) <= bound, istop) for istop, value, added, bound in rules]
        ends += [((value <= bound) & (added > bound), NO_BETTER) for _, value, added, bound in rules[2:]]
        ends += [
            ((conlim > 0) & (self.condition >= conlim), CONDITION),
            (self.condition >= 1 / eps, CONDITION_AT_WORST),
            (iterations >= limit, TIME),
        ]
        istop = jnp.select(*zip(*ends, strict=True), GOES_ON).astype(jnp.int32)
        is_solved = (istop == SOLVED) | (istop == SOLVED_AT_BEST)
        solved, least = (jnp.maximum(rules[i][3], rules[i + 2][3]) for i in range(2))
        return istop, jnp.where(is_solved, self.norm, self.gradient), jnp.where(is_solved, solved, least)

    def after(self, alpha, beta, damp=None):
        """With one more column of the bidiagonal matrix, (alpha before, beta), and the alpha after it."""
        if damp is None:
            chat, shat, alphahat = jnp.ones_like(alpha), jnp.zeros_like(alpha), self.alphabar
        else:
            chat, shat, alphahat = rotation(self.alphabar, damp)
        c, s, rho = rotation(alphahat, beta)
        theta, alphabar = s * alpha, c * alpha
        thetabar, rhotemp = self.sbar * rho, self.cbar * rho
        cbar, sbar, rhobar = rotation(rhotemp, theta)
        zeta, zetabar = cbar * self.zetabar, -sbar * self.zetabar
        # Without a barrier XLA divides by rho * rhobar, which leaves the range.
        share = jax.lax.optimization_barrier(zeta / nonzero(rho))
        step = Step(
            -(thetabar / nonzero(self.rhobar)) * (rho / nonzero(self.rho)), share / nonzero(rhobar),
            -theta / nonzero(rho),
        )  # fmt: skip
        # The norm of the residual.
        betaacute, betacheck = chat * self.betadd, -shat * self.betadd
        betahat, betadd = c * betaacute, -s * betaacute
        ctilde, stilde, rhotilde = rotation(self.rhod, thetabar)
        thetatilde, rhod = stilde * rhobar, ctilde * rhobar
        betad = -stilde * self.betad + ctilde * betahat
        tautilde = (self.zeta - self.thetatilde * self.tautilde) / nonzero(rhotilde)
        taud = (zeta - thetatilde * tautilde) / nonzero(rhod)
        beyond = jnp.hypot(self.beyond, betacheck)
        # The last number on the diagonal of the triangular matrix is not final; the first rhobar, 0, is none.
        largest = jnp.maximum(self.largest, self.rhobar)
        smallest = jnp.where(self.rhobar > 0, jnp.minimum(self.smallest, self.rhobar), self.smallest)
        condition = jnp.maximum(largest, rhotemp) / nonzero(jnp.minimum(smallest, rhotemp))
        column = jnp.hypot(self.alpha, beta)
        if damp is not None:
            column = jnp.hypot(column, damp)
        return self._replace(
            alpha=alpha, alphabar=alphabar, rho=rho, rhobar=rhobar, cbar=cbar, sbar=sbar, zeta=zeta, zetabar=zetabar,
            betad=betad, betadd=betadd, rhod=rhod, thetatilde=thetatilde, tautilde=tautilde, largest=largest,
            smallest=smallest, beyond=beyond, norm=jnp.hypot(beyond, jnp.hypot(betad - taud, betadd)),
            gradient=abs(zetabar), scale=jnp.maximum(self.scale, column),
            frobenius=jnp.hypot(self.frobenius, jnp.hypot(beta, alpha)), condition=condition,
        ), step  # fmt: skip


def rotation(a, b):
    """c, s and r of the rotation that takes (a, b) to (r, 0)."""
    r = jnp.hypot(a, b)
    return jnp.where(r == 0, jnp.sign(a), a / nonzero(r)), b / nonzero(r), r
