"""What takes long to read, read in a thread while something else is computed."""

import contextlib
import queue
import threading
import time

AHEAD = 2  # what is computed in a thread while something is asked for
LONG = 2e-4  # seconds after which it is worth that


def ahead(items):
    """What a generator gives, computed in a thread from where it takes long on."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        if time.perf_counter() - start > LONG:
            yield from _in_thread(item, items)
            return
        yield item


def _in_thread(first, items):
    found, stop = queue.Queue(AHEAD), threading.Event()
    end = object()

    def put(item):
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                found.put(item, timeout=0.1)
                return

    def fill():
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # it is raised where the batch is asked for
            put((end, error))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield first
        while True:
            item, error = found.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
