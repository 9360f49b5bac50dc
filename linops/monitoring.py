"""Watching a solver from the operator that it multiplies: products counted, timed, limited, shown while it runs."""

import collections
import functools
import math
import numbers
import threading
import time

import numpy as np
from scipy.sparse.linalg import LinearOperator

from linops.algebra.operator import Operator
from linops.arrays import as_foreign, brief
from linops.counted import counted, heard
from linops.linear_map import LinearMap
from linops.progress import shown_bar


def monitor(A, progress=True, max_matvecs=None, callback=None):
    """The operator A, its products counted and timed: the same shape, dtype, Spaces, claims and numbers, bit for bit.

    It goes into any solver in place of A, and says what that does: `matvecs` and `rmatvecs`, the products with A and
    with Aᵀ or Aᴴ (all are matvecs where A is its own), a column of a block being one; `seconds`, those spent in them;
    and `record`, a `Tally` with the rest, of which `print(M.record)` is one line. Transposes, adjoints and `M.at(x)`
    share the record.

    - `progress`: a bar on stderr where that is a terminal, drawn by tqdm where it is installed (`pip install
      linops[progress]`). In `with linops.monitor(A) as M:` it ends with the block, else with the record, or when a
      product is stopped.
    - `max_matvecs`: so many products of both kinds together. The one beyond raises `MatvecLimit`, before it is made,
      which ends a solver that knows no such limit and carries what is known. Not so PROPACK, of `svds`: its C code
      does not end well where a product raises. The solvers of `linops.linalg` may pass the limit by one step, some
      products, and by those of the final residuals, and end with what they have.
    - `callback(record)`: called after each product or block, where `record.vector` and `record.product` are what was
      multiplied and what came of it, for looking only. What it raises ends the solver, and so does Ctrl-C: the record
      is as true as before.

    What is seen are products of NumPy arrays, of device arrays and of trees, which are waited for. Inside of `jit`,
    `vmap` and `grad` the operator acts as A and nothing is counted or limited; algorithms that run there tell of their
    products by `M.report(matvecs, text)`. Solves within another run, of a `linops.inverse` as OPinv= or M=, are
    not seen, nor is a preconditioner. A product of what algebra makes of the operator, as `M.T @ M + c * I`, stays
    one program, and counts the products with A in it, here one of each kind; its seconds are those of the whole.
    A shallow copy shares the record. What comes out of `jit`, `jax.tree.map`, a deep copy or a pickle counts anew, with
    no bar, limit or callback.

    A may be a SciPy LinearOperator or a sparse matrix as well; what comes back is then a LinearOperator and no
    `linops.Operator`, whose products are those of A. What is neither is a TypeError.

    >>> from scipy.sparse.linalg import cg
    >>> with monitor(linops.Diagonal(np.array([1.0, 2.0, 4.0], np.float32)), progress=False) as M:
    ...     x, info = cg(M, np.ones(3, np.float32))
    >>> M.matvecs, M.rmatvecs
    (3, 0)
    """
    if max_matvecs is not None and not _is_count(max_matvecs):
        raise ValueError(f"monitor got max_matvecs={max_matvecs!r}, expected a number of products >= 0, or None")
    if not (callback is None or callable(callback)):
        raise TypeError(f"monitor got callback={brief(callback)}, expected a function of the record, or None")
    record = Tally(progress, max_matvecs, callback)
    if isinstance(A, LinearMap):
        return Monitored._make(operator=A, record=record)
    if (foreign := as_foreign(A)) is None:
        raise TypeError(
            f"monitor got {brief(A)}, expected an operator of linops or SciPy, or a sparse matrix: write "
            "linops.Matrix(M) for a dense one"
        )
    return MonitoredForeign(foreign, record)


def _is_count(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 0


class MatvecLimit(RuntimeError):  # noqa: N818 - a limit that was set is no error of the user's
    """The product beyond `max_matvecs` of `linops.monitor`, which was not made; it has what is known.

    - `matvecs`, `rmatvecs`, `seconds`: of the products that were made.
    - `vector`: a copy of what was to be multiplied. That is a vector of the solver's own, in cg the direction of the
      next step, in eigsh one of the Krylov space, and no solution.
    - `iterate`: the last one that the solver handed to `callback=M.keep`, or None.
    """

    def __init__(self, message, **known):
        super().__init__(message)
        vars(self).update(known)


KNOWN = "matvecs", "rmatvecs", "seconds", "vector", "iterate"


class Tally:
    """What `linops.monitor` knows: the numbers so far. As a text it is one line.

    - `matvecs`, `rmatvecs`: products with A, and with Aᵀ or Aᴴ.
    - `seconds`: spent in products, in all.
    - `max_matvecs`: the limit of both kinds together, or None.
    - `vector`, `product`: what was multiplied and what came of it, within `callback`, else None. After a product that
      was stopped, by the limit, by `callback`, by an error or by Ctrl-C in it, `vector` is a copy of the one at hand.
    - `iterate`: a copy of what the solver last handed to `keep`, or None.
    """

    def __init__(self, progress=False, max_matvecs=None, callback=None):
        self.matvecs = self.rmatvecs = 0
        self.seconds = 0.0
        self.max_matvecs = max_matvecs
        self.vector = self.product = self.iterate = None
        self._callback = callback
        self._last = collections.deque(maxlen=1000)  # seconds of a product, for the median
        self._first = self._until = None  # when the first product began, and the last one ended
        self._lock = threading.Lock()  # one operator may be used from several threads
        self._shows, self._bar = progress, None

    @property
    def median(self):
        """Seconds of one product, the median of the last thousand calls; nan before the first."""
        return float(np.median(self._last)) if self._last else math.nan

    @property
    def elapsed(self):
        """Seconds from the begin of the first product to the end of the last, with those of the solver itself."""
        return 0.0 if self._first is None else self._until - self._first

    @property
    def remaining(self):
        """Products up to the limit, infinity without one."""
        return math.inf if self.max_matvecs is None else max(0, self.max_matvecs - self.matvecs - self.rmatvecs)

    def __str__(self):
        timed = f" (median {self.median:.2g} s)" if self._last else ""
        # Of products within a run on the device no time is known.
        apart = f"{self.seconds:.3g} s in products{timed}, " if self.seconds else ""
        return f"{self.matvecs} matvecs, {self.rmatvecs} rmatvecs: {apart}{self.elapsed:.3g} s in all"

    def __repr__(self):
        return f"<Tally: {self}>"

    def __reduce__(self):
        return Tally, ()  # a deep copy, or one in another process, counts anew

    # What the user, the solver and the algorithms on the device call.

    def keep(self, x, *others):
        """For `callback=` of SciPy's solvers: keep a copy of the iterate x, to be had when the solver is stopped."""
        self.iterate = _copied(x)

    def report(self, matvecs, text="", rmatvecs=0, seconds=0.0):
        """Count products that were made where none is seen, with a short text for the bar; True to stop.

        That is where the limit is reached or passed: an algorithm ends between its steps, and an error would lose what
        it has. `callback` is called as after a product, without a vector.
        """
        if self._shows and self._bar is None:
            self._open_bar()
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
        with self._lock:
            self.matvecs += matvecs
            self.rmatvecs += rmatvecs
        now = time.perf_counter()
        self.end(None, None, matvecs, rmatvecs, now - seconds, now)
        return self.remaining == 0

    def close(self):
        """End the bar, for good."""
        self._shows = False
        self._end_bar()

    # What `counted` calls, around each product.

    def begin(self, v, matvecs, rmatvecs):
        """Count the product, or refuse it."""
        if self._shows and self._bar is None:
            self._open_bar()
        with self._lock:
            allowed = self.max_matvecs is None or matvecs + rmatvecs <= self.remaining
            if allowed:
                self.matvecs += matvecs
                self.rmatvecs += rmatvecs
        if not allowed:
            self._stop(v)
            raise MatvecLimit(
                f"a solver asks for {matvecs + rmatvecs} more after {self.matvecs} matvecs and {self.rmatvecs} "
                f"rmatvecs, expected at most max_matvecs={self.max_matvecs} in all: give more to linops.monitor, ask "
                "less of the solver, or catch this error, which has what is known (matvecs, rmatvecs, seconds, "
                "vector, iterate)",
                **{name: getattr(self, name) for name in KNOWN},
            )

    def undo(self, v, matvecs, rmatvecs):
        """Take a product back that was not made."""
        with self._lock:
            self.matvecs -= matvecs
            self.rmatvecs -= rmatvecs
        self._stop(v)

    def end(self, v, product, matvecs, rmatvecs, start, stop):
        """Time the product, and tell who wants to know."""
        count, seconds = matvecs + rmatvecs, stop - start
        with self._lock:
            self.seconds += seconds
            self._until = stop
            if self._first is None:
                self._first = start
            if seconds and count:
                self._last.append(seconds / count)
        if self._bar is not None:
            self._bar.update(count)
        if self._callback is not None:
            self._call(v, product)

    def _call(self, v, product):
        self.vector, self.product = v, product
        try:
            self._callback(self)
        except BaseException:
            self._stop(v)
            raise
        self.vector = self.product = None

    def _stop(self, v):
        """Before an error: keep the vector at hand, a copy, for solvers go on in its memory, and end the bar."""
        self.vector, self.product = _copied(v), None
        self._end_bar()

    def _open_bar(self):
        self._bar = shown_bar(self.max_matvecs, self.matvecs + self.rmatvecs)
        self._shows = self._bar is not None

    def _end_bar(self):
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


def _copied(v):
    """A copy of a NumPy array; other arrays do not change."""
    return v.copy() if isinstance(v, np.ndarray) else v


class _Recorded:
    """What an operator says of its record."""

    matvecs = property(lambda self: self.record.matvecs)
    rmatvecs = property(lambda self: self.record.rmatvecs)
    seconds = property(lambda self: self.record.seconds)
    report = property(lambda self: self.record.report)
    keep = property(lambda self: self.record.keep)
    close = property(lambda self: self.record.close)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Monitored(_Recorded, Operator):
    """What `monitor` makes of an operator: its code and arrays are those of the operator, its record is of the host."""

    operator: Operator

    # No fields, so that operators that are one but for their records are one program, and no record is kept by it.
    record = functools.cached_property(lambda self: Tally())
    is_adjoint = False

    domain = property(lambda self: self.operator.domain)
    codomain = property(lambda self: self.operator.codomain)
    symmetric = property(lambda self: self.operator.symmetric)
    hermitian = property(lambda self: self.operator.hermitian)
    positive_semidefinite = property(lambda self: self.operator.positive_semidefinite)
    _dtype = property(lambda self: self.operator._dtype)
    _real = property(lambda self: self.operator._real)
    _is_semidefinite = property(lambda self: self.operator._is_semidefinite)
    _adapts = property(lambda self: self.operator._adapts)

    def at(self, *point, **options):
        """The operator at another point, with the same record."""
        return self._replace(operator=self.operator.at(*point, **options))

    def __repr__(self):
        return super().__repr__().replace("Monitored", f"Monitored {type(self.operator).__name__}", 1)

    def _points(self):
        return self.operator._points()

    def _replace(self, is_adjoint=None, **changes):
        is_adjoint = self.is_adjoint if is_adjoint is None else is_adjoint
        return self._make(**{"operator": self.operator, **changes}, record=self.record, is_adjoint=is_adjoint)

    def _mv(self, v):
        return self.operator._mv(v)

    def _mv_transposed(self, w):
        return self.operator._mv_transposed(w)

    def _transposed(self):
        return self._replace(operator=self.operator.T, is_adjoint=not self.is_adjoint)

    # The doors are those of the operator, which is linearized and compiled once.

    def _listeners(self):
        return [(self.record, self.is_adjoint), *self.operator._listeners()]

    @functools.cached_property
    def _door(self):
        return counted(self.operator._door, [(self.record, self.is_adjoint)])

    @functools.cached_property
    def _transposed_door(self):
        return self._door if self._equals_transpose else self._of_adjoint(self.operator._transposed_door)

    @functools.cached_property
    def _adjoint_door(self):
        return self._door if self._equals_adjoint else self._of_adjoint(self.operator._adjoint_door)

    def _of_adjoint(self, door):
        return counted(door, [(self.record, not self.is_adjoint)])

    @functools.cached_property
    def _complex_door(self):
        return counted(self.operator._complex_door, [(self.record, self.is_adjoint)])


class MonitoredForeign(_Recorded, LinearOperator):
    """The same of a LinearOperator of SciPy's or of others: each product is its own."""

    def __init__(self, operator, record):
        super().__init__(operator.dtype, operator.shape)
        self._operator, self.record = operator, record

    def _matvec(self, v):
        return self._heard(self._operator.matvec, v, 1, 0)

    def _matmat(self, block):
        return self._heard(self._operator.matmat, block, 1, 0)

    def _rmatvec(self, w):
        return self._heard(self._operator.rmatvec, w, 0, 1)

    def _rmatmat(self, block):
        return self._heard(self._operator.rmatmat, block, 0, 1)

    def _heard(self, multiply, v, matvecs, rmatvecs):
        columns = v.size // max(1, self.shape[0 if rmatvecs else 1])  # also of the batches of SciPy 1.18
        return heard(self.record, matvecs, rmatvecs, columns, multiply, v)
