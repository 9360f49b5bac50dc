"""Long runs survive: the state of an algorithm in a file, from which it goes on bit for bit."""

import contextlib
import hashlib
import io
import json
import os
import zipfile

import jax
import numpy as np

from linops.files import replaced
from linops.processes import by_first, gathered, of_first, spans

VERSION = 3
SAME = 1e-5  # of the largest: numbers are of one operator, though sums may go another way the next time


class SavedRun:
    """The file of a run: of which algorithm, of which operator, and its state as the arrays of a pytree.

    It is written beside the old one, which it replaces whole: a process that is killed leaves one or the other.
    `identity` says, in numbers and words, what the run is of; a file of another run is refused. Of a state that lies
    on devices of several processes the first one writes the file, and reads it for all.
    """

    def __init__(self, path, identity, state):
        self.path, self.identity, self.by_first = os.fspath(path), identity, by_first if spans(state) else _by_itself
        self.by_first(self._try)

    def _try(self):
        """Say that the file cannot be written, and not after an hour."""
        try:
            with replaced(self.path):
                pass
        except OSError as error:
            raise OSError(
                f"got save={self.path!r}, which cannot be written ({error.strerror}); expected a file in a folder that "
                "is there and may be written to"
            ) from None

    def write(self, state):
        """Replace the file by one of this state."""
        arrays = _arrays(state)
        head = {"version": VERSION, "sum": _sum(arrays), "identity": self.identity}

        def write():
            with replaced(self.path) as fresh, open(fresh, "wb") as file:
                np.savez(file, json.dumps(head), *arrays)
                file.flush()
                os.fsync(file.fileno())

        self.by_first(write)

    def read(self, like):
        """The state in the file, arrays placed as those of `like`; None where there is no file."""
        content = self._content() if self.by_first is _by_itself or jax.process_index() == 0 else None
        content = content if self.by_first is _by_itself else of_first(content)
        if content is None:
            return None
        head, arrays = self._parts(content)
        if head["version"] != VERSION:
            raise ValueError(
                f"{self.path} is of version {head['version']} of saved runs, expected {VERSION}: "
                "go on with the version of linops that wrote it, or remove it to begin anew"
            )
        self._require_same(head["identity"])
        leaves, treedef = jax.tree.flatten(like)
        given, expected = ([(a.shape, a.dtype) for a in some] for some in (arrays, _arrays(like)))
        if head["sum"] != _sum(arrays) or given != expected:
            raise ValueError(f"{self.path} is damaged: its numbers are not those that were written; remove it")
        return treedef.unflatten(map(_placed, arrays, leaves))

    def _content(self):
        """The bytes of the file, none of one that cannot be read."""
        if not os.path.exists(self.path):
            return None
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            return file.read()
        return b""

    def _parts(self, content):
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                head = json.loads(str(file["arr_0"]))
                arrays = [file[f"arr_{i}"] for i in range(1, len(file.files))]
            head["version"], head["sum"], head["identity"]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, TypeError):
            raise ValueError(
                f"{self.path} is no saved run, or is cut off; expected a file that save= wrote: remove it to begin "
                "anew, or give another path"
            ) from None
        return head, arrays

    def _require_same(self, found):
        differ = [name for name in self.identity if not _agree(found.get(name), self.identity[name])]
        if differ:
            told = _difference(differ[0], found.get(differ[0]), self.identity[differ[0]])
            raise ValueError(f"{self.path} is of another run: {told}; give another file, or remove it to begin anew")


def _difference(name, found, expected):
    """What differs, in words: the numbers of products and of checksums tell nothing to a reader."""
    if name == "products":
        return "products with the operator are others, as at another point or over other data"
    if isinstance(expected, dict):
        return f"it began with another {name}"
    found, expected = _short(found, expected)
    return f"its {name} is {found}, expected {expected}"


def _short(*values):
    """Values as texts: floats of as few digits, three at least, as tell them from each other."""
    if not all(isinstance(value, float) for value in values):
        return tuple(map(repr, values))
    texts = (tuple(f"{value:.{digits}g}" for value in values) for digits in range(3, 18))
    return next((some for some in texts if len(set(some)) == len(values)), tuple(map(repr, values)))


def _by_itself(act):
    act()


def identified(tree):
    """A number as it is, of other pytrees a checksum of their arrays."""
    arrays = _arrays(tree)
    return arrays[0].item() if len(arrays) == 1 and arrays[0].ndim == 0 else {"sum": _sum(arrays)}


def _arrays(tree):
    """The NumPy arrays of a pytree, of keys those that they are made of."""
    leaves = jax.tree.leaves(tree)
    return [np.asarray(gathered(jax.random.key_data(leaf) if _is_key(leaf) else leaf)) for leaf in leaves]


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _placed(array, like):
    """An array of the device, or a key, where another one lies."""
    if _is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    if not like.committed:
        return jax.numpy.asarray(array)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _agree(found, expected):
    if isinstance(expected, list):
        alike = isinstance(found, list) and np.shape(found) == np.shape(expected)
        return alike and np.allclose(found, expected, 0, SAME * np.max(np.abs(expected), initial=0), equal_nan=True)
    return found == expected


def _sum(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
