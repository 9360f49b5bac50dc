"""Who looks at an algorithm between its steps: callbacks, monitors, files in which it is kept, and Ctrl-C.

None of them changes a number: the program that runs between two looks is the one that runs without any.
"""

import contextlib
import dataclasses
import inspect
import math
import numbers
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp

from linops.budget import log
from linops.counted import allowed
from linops.iterate import MOST_STEPS, compute, iterate, operators_of, scope_of
from linops.processes import of_all, spans
from linops.saving import SavedRun, identified

SAVE_SECONDS = 60  # between two files, by default
LATER = "maxiter"  # what may be another one when a run goes on: its states do not depend on it
TRIED = 4  # vectors by which an operator is known again
# As users know them.
NAMES = {"block": "v0", "v": "v0", "held": "lock", "seed": "key", "wanted": "k", "capacity": "ncv"}


def watched(algorithm, A, operands, glance, heard=(), callback=None, save=None, with_adjoint=False, every=None):
    """The last state of an algorithm, and the `Watch` that saw it.

    `glance`, a function that is code, gives the record of a state: its `matvecs`, and a `text` for a bar. `heard` are
    the listeners of the operator that a user gave, `callback(record)` says True to stop, and `save` is a path, or a
    pair of one and seconds. Half of the products are the adjoint's where it is said so. It is looked at from time to
    time, or after `every` so many steps.
    """
    watch = Watch(A, glance, heard, callback, with_adjoint)
    if not heard and callback is None and save is None:
        return iterate(algorithm, A, *operands), watch
    state = None
    if save is not None:
        state = iterate(algorithm, A, *operands, max_steps=0)
        path, watch.seconds = path_and_seconds(save)
        watch.saved = SavedRun(path, _identity(algorithm, A, operands, state), state)
        with scope_of(A).entered():
            found = watch.saved.read(state)
        if found is not None:
            log.info("a run goes on from %s, after %s", path, _text(compute(glance, A, found)))
            state = found
    with _interrupts(watch):
        state = iterate(algorithm, A, *operands, watch=watch, every=every, state=state)
    if watch.saved:
        watch.saved.write(state)
    return state, watch


def refuse_in_jit(name, **options):
    """Refuse who would look at a run that is a part of a program."""
    given = [option for option, value in options.items() if value is not None and value is not False]
    if given:
        raise TypeError(
            f"{name} got {', '.join(f'{option}=' for option in given)} within jit, vmap or grad, expected none there: "
            "a run that is a part of a program takes arrays, and nobody looks at it"
        )


def path_and_seconds(save):
    """The two of what a user says as save=."""
    pair = save if isinstance(save, tuple) else (save, SAVE_SECONDS)
    if len(pair) != 2 or not isinstance(pair[0], str | os.PathLike) or not isinstance(pair[1], numbers.Real):
        raise TypeError(f"got save={save!r}, expected a path, or a pair of one and the seconds between two files")
    if not 0 <= pair[1] < math.inf:
        raise ValueError(f"got save={save!r}, expected seconds between two files that are finite and not negative")
    return pair


class Watch:
    """What looks at the states of a run: monitors, a callback, a file, and whether Ctrl-C was pressed."""

    def __init__(self, A, glance, heard, callback, with_adjoint):
        self.A, self.glance, self.heard, self.callback = A, glance, heard, callback
        self.with_adjoint = with_adjoint
        self.matvecs, self.new, self.interrupted = 0, 0, False
        self.saved, self.seconds, self.written = None, SAVE_SECONDS, time.monotonic()

    def __call__(self, state):
        """Look at a state; True to stop."""
        stop = False
        if self.heard or self.callback is not None:
            record = compute(self.glance, self.A, state)
            stop = self.report(record)
            stop |= self.callback is not None and bool(self.callback(record))
        is_due = self.saved is not None and time.monotonic() - self.written >= self.seconds
        stop |= self.interrupted
        if spans(state):  # what one process hears or sees is for all
            is_due, stop = of_all(is_due)[0] > 0, of_all(stop).any()
        if is_due:
            self.saved.write(state)
            self.written = time.monotonic()
        return bool(stop)

    def report(self, record):
        """Tell the monitors how far a run is; True where one has reached its limit."""
        self.new, self.matvecs = int(record.matvecs) - self.matvecs, int(record.matvecs)
        adjoint = self.new // 2 if self.with_adjoint else 0
        counts = self.new - adjoint, adjoint
        stops = []
        for monitor, is_adjoint in self.heard:
            matvecs, rmatvecs = reversed(counts) if is_adjoint else counts
            stops.append(monitor.report(matvecs, record.text, rmatvecs))
        return any(stops)

    def most(self, steps, state):
        """How many more steps the monitors allow, one at least, where each takes as many products as the last ones."""
        left = allowed(self.heard, MOST_STEPS)
        most = left if self.new == 0 else max(1, left * steps // self.new)
        return int(min(of_all(most))) if spans(state) else most


@contextlib.contextmanager
def _interrupts(watch):
    """A context in which the first Ctrl-C stops the algorithm at the next look, the second one at once.

    Where Ctrl-C is ignored, as in the background of a shell, or is not Python's, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def interrupt(number, frame):
        watch.interrupted = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _text(record):
    return f"{int(record.matvecs)} products: {record.text}"


def _identity(algorithm, A, operands, state):
    """What tells a run from others: what is asked for, some inner products, and what it begins with."""
    first, tried = operators_of(A)[0], compute(_tried, A)
    asked = {}
    for field in dataclasses.fields(algorithm):
        value = getattr(algorithm, field.name)
        if field.name != LATER:
            asked[NAMES.get(field.name, field.name)] = value if isinstance(value, int | str) else repr(value)
    kind = {"algorithm": type(algorithm).__name__, "shape": list(first.shape), "dtype": str(first.dtype)}
    return {**kind, **asked, "products": tried.tolist(), **_begun(algorithm, operands), "start": identified(state)}


def _begun(algorithm, operands):
    """What each operand of an algorithm is, by the names that users know; a key first, of which others may be drawn."""
    names = list(inspect.signature(algorithm.begin).parameters)[1:]
    begun = {}
    for name, operand in zip(names, operands, strict=False):
        parts = operand._asdict() if hasattr(operand, "_asdict") else {name: operand}
        begun |= {NAMES.get(part, part): identified(value) for part, value in parts.items()}
    return dict(sorted(begun.items(), key=lambda item: item[0] != "key"))


def _tried(operators):
    """Inner products of what each operator makes of one vector with some others."""
    keys = jax.random.split(jax.random.key(20), TRIED + 1)

    def tried(A):
        product = A._mv(A.domain.draw(keys[0]))
        return [A.codomain.inner(A.codomain.draw(key), product) for key in keys[1:]]

    return jnp.abs(jnp.stack([number for A in operators_of(operators) for number in tried(A)]))
