"""Settings for all tests: float64 is off, as JAX has it by default; a test that wants it asks for the fixture `x64`.

Tables whose cells vary in much are run as a cover, and whole with `--whole`. Tests of one operator run one after the
other, so that what they multiply by is compiled once.
"""

import collections
import gc
import itertools
import os
import pathlib
import signal
import zlib

import jax
import pytest
from counting import collect, forget

# A program in one piece compiles in less time than in many side by side: both cores have tests. XLA's emitters of
# fusions take a third of the time; later versions of JAX know no such option, and do not need it.
QUICK = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")])  # read once, when something is computed
# Of workers, which start later: BLAS's threads spin beside those of the other worker, and took a third of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_ran = itertools.count(1)  # tests of this process


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="run all cells of the tables, and not a cover of them")


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which it is not in the background of a shell
    jax.config.update("jax_disable_most_optimizations", not config.getoption("--whole"))
    config.addinivalue_line(
        "markers",
        "covering(*names, row=None): of the values of these parameters one for each combination of the others, and row",
    )


def pytest_collection_modifyitems(config, items):
    left_out = set() if config.getoption("--whole") else set(_beside_the_cover(items))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = sorted((item for item in items if item not in left_out), key=_turn)


def pytest_collection_finish():
    """What is there now stays, and what programs are made of is much and soon gone: the collector has few turns."""
    collect()
    gc.set_threshold(200_000, 10, 50)


def pytest_runtest_teardown(item):
    """Linux gives a process 65,530 pieces of memory, a program is up to hundreds of them, and LLVM aborts beyond."""
    if next(_ran) % 20 == 0 and _pieces_of_memory() > 35_000:
        forget()


def _pieces_of_memory():
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def _beside_the_cover(items):
    """The cells of a table that the marker `covering` leaves out: it takes one of each row, by the row's name."""
    rows = collections.defaultdict(list)
    for item in items:
        markers = list(item.iter_markers("covering"))
        if covered := {name for marker in markers for name in marker.args}:
            others = [str(getattr(v, "__name__", v)) for name, v in item.callspec.params.items() if name not in covered]
            others += [str(marker.kwargs) for marker in markers if marker.kwargs]
            rows[item.parent, item.originalname, " ".join(others)].append(item)
    for (_, _, name), row in rows.items():
        taken = zlib.crc32(name.encode()) % len(row)
        yield from (item for i, item in enumerate(row) if i != taken)


def _turn(item):
    """Tests of one operator, by a law or in a table of one file, go together; those that forget all, last of all."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "laws" in item.path.parts:
        return 1, str(parameters.get("name", ""))
    return 2 if hasattr(item.module, "forget") else 0, str(item.path), str(parameters.get("operator", ""))


@pytest.fixture
def x64():
    """JAX with float64, for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def optimized():
    """For modules that are about what XLA makes of a program; of thousands of others its optimizations take the most
    time, and save none in a run.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
