"""The folder that an export makes: written beside its place, put there when it is whole, or gone without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import is_bundle
from edge_runtime.errors import EdgeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTIAL = ".partial"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_target(bundle: Path, *, force: bool) -> None:
    """Whether a bundle may be made there.

    Raises:
        EdgeRuntimeError: `bundle` exists and is none, or is one and `force` is not given.
    """
    if not (bundle.exists() or bundle.is_symlink()):
        return
    if not is_bundle(bundle):
        raise EdgeRuntimeError(f"{bundle} exists and is no bundle; it is left alone")
    if not force:
        raise EdgeRuntimeError(f"{bundle} exists; --force replaces it")


@contextlib.contextmanager
def temporary_folder(bundle: Path) -> Iterator[Path]:
    """A folder beside `bundle`, to be filled and then given to `put`; whatever has its name afterwards is removed.

    A process that is killed cannot do that, so what earlier ones left behind goes first. A living export to the same
    name is known by the lock it holds.
    """
    bundle.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{bundle.name}."
    for stale in bundle.parent.glob(f"{prefix}*{_PARTIAL}"):
        with _locked(stale) as free:
            if free:
                _remove(stale)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_PARTIAL, dir=bundle.parent))
            if stack.enter_context(_locked(folder)):
                break  # else another export swept it away before it had its lock
        stack.callback(_remove, folder)
        yield folder


def put(folder: Path, bundle: Path) -> None:
    """Gives the finished `folder` the name `bundle`; a bundle there takes the folder's name instead.

    Both happen in one step of the file system where it knows how to exchange two names, so that a power cut leaves
    either the old bundle or the new one.
    """
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    # Nothing may have the name before its contents are on the disk.
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)
    if not bundle.exists():
        folder.rename(bundle)
    elif not _exchange(folder, bundle):
        with temporary_folder(bundle) as aside:
            old = aside / bundle.name
            try:
                bundle.rename(old)
                folder.rename(bundle)
            finally:
                if old.exists() and not bundle.exists():
                    old.rename(bundle)
    _sync(bundle.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock, which a dying process lets go of; False if another process holds it or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor).st_nlink > 0
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_symlink():  # a link to a bundle that was replaced
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the file system could let two names change places."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
