"""Checks who can write the on-disk cache of compiled kernels: its files are machine code, run as it is.

Whoever can write a file of the cache, its directory, or replace a directory above it, runs code as the user who loads a
kernel. The places that are chosen by default belong to the user; NUMBA_CACHE_DIR may name any. Trusted are this user,
root, and the owner of these sources, who could as well change the sources; directories above both add no one.
"""

import grp
import os
import pwd
import stat
from pathlib import Path

from runtime.errors import MachineError

SOURCES = Path(__file__).resolve().parent
REMEDY = "set NUMBA_CACHE_DIR to a new directory that only you can write"


def require_private(directory: Path, prefix: str) -> None:
    """Raise MachineError where another user can write or own the cache, or a file in it whose name begins so."""
    place = directory.resolve()
    for folder in (place, *(parent for parent in place.parents if not SOURCES.is_relative_to(parent))):
        status = folder.stat()
        # In a sticky directory such as /tmp nobody renames or removes what belongs to another user.
        sticky = folder != place and status.st_mode & stat.S_ISVTX
        if reason := _exposure(status, writable_by_all=bool(sticky)):
            raise MachineError(f"cache of the CPU kernels: {folder}: {reason}: {REMEDY}")
    for file in sorted(place.glob("*")):
        if not file.name.startswith(prefix):
            continue
        status = file.lstat()
        if reason := _exposure(status) if stat.S_ISREG(status.st_mode) else "it is no regular file":
            raise MachineError(f"cache of the CPU kernels: {file}: {reason}: remove it, or {REMEDY}")


def _exposure(status: os.stat_result, *, writable_by_all: bool = False) -> str | None:
    """Return how a user who is not trusted can change a file or directory; None where none can."""
    if status.st_uid not in (0, os.geteuid(), SOURCES.stat().st_uid):
        return f"it belongs to {_user(status.st_uid)}"
    if writable_by_all:
        return None
    if status.st_mode & stat.S_IWOTH:
        return "every user can write it"
    if status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid):
        return f"the group {_group(status.st_gid)} can write it"
    return None


def _is_private_group(gid: int) -> bool:
    """Return True for root's group, and for that of this user alone, which has the user's name by convention."""
    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
