"""Files that are replaced whole: whoever reads one, or a process that is killed, finds the old one or the new one."""

import contextlib
import errno
import os
import stat
import tempfile


@contextlib.contextmanager
def replaced(path):
    """A new file in the folder of `path`, by its name: it takes the place of `path` at the end, if it is not empty.

    Where it cannot be, that is an OSError before anything is done.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, expected a file", os.fspath(path))
    folder, name = os.path.split(target)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=os.path.splitext(name)[1], dir=folder)
    os.close(handle)
    try:
        yield temporary
        if os.path.getsize(temporary):
            os.chmod(temporary, _mode(target))
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _mode(path):
    """The permissions of a file, or of a new one."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(os.stat(path).st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
