"""The Windows calls for this folder, through ctypes; imported only on Windows.

Files are opened with FILE_SHARE_DELETE, so that a file can be renamed, replaced and removed while it is open, as on
other systems. Reads and writes take their offset from an OVERLAPPED, so threads need no lock. Sources: the pages of
these functions in Microsoft's Win32 documentation.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"  # type checkers skip the rest elsewhere

import ctypes
import msvcrt
import os
import time
from collections.abc import Callable
from ctypes import wintypes
from functools import lru_cache
from pathlib import Path

_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_security = ctypes.WinDLL("advapi32", use_last_error=True)

_GENERIC_READ, _GENERIC_WRITE = 0x80000000, 0x40000000
_SHARE_ALL = 0x1 | 0x2 | 0x4  # read, write, delete
_CREATE_NEW, _CREATE_ALWAYS, _OPEN_EXISTING, _OPEN_ALWAYS, _TRUNCATE_EXISTING = range(1, 6)
_NORMAL, _OPEN_REPARSE_POINT = 0x80, 0x00200000
_INVALID_HANDLE = ctypes.c_void_p(-1).value
_MAX_TRANSFER = 1 << 30  # bytes in one call; the parameter has 32 bits
_END_OF_FILE = 38
_ACCESS_DENIED, _SHARING_VIOLATION, _LOCK_VIOLATION, _IO_PENDING = 5, 32, 33, 997
_LOCK_EXCLUSIVE_AT_ONCE = 0x2 | 0x1
# Locks keep others from reading and writing the bytes that they cover. No file has a byte there.
_LOCKED_BYTE = (1 << 63) - 2
_REPLACE, _WRITE_THROUGH = 0x1, 0x8
_PATIENCE = 2.0  # seconds: virus scanners open new files, mostly for a few milliseconds
_END_OF_FILE_INFO = 6
_SET_SPARSE, _DUPLICATE_EXTENTS = 0x000900C4, 0x00098344
_PERSISTENT_ACLS, _BLOCK_REFCOUNTING = 0x00000008, 0x08000000
_OWNER = 1  # OWNER_SECURITY_INFORMATION; TOKEN_USER and SE_FILE_OBJECT are 1, too
_TOKEN_QUERY, _TOKEN_OWNER = 8, 4


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("internal", ctypes.c_size_t),
        ("internal_high", ctypes.c_size_t),
        ("offset", wintypes.DWORD),
        ("offset_high", wintypes.DWORD),
        ("event", wintypes.HANDLE),
    )

    @classmethod
    def at(cls, offset: int) -> _Overlapped:
        return cls(offset=offset & 0xFFFFFFFF, offset_high=offset >> 32)


class _Extents(ctypes.Structure):
    _fields_ = (
        ("source", wintypes.HANDLE),
        ("source_offset", ctypes.c_int64),
        ("target_offset", ctypes.c_int64),
        ("length", ctypes.c_int64),
    )


_kernel.CreateFileW.restype = wintypes.HANDLE
_kernel.CreateFileW.argtypes = (
    wintypes.LPCWSTR,
    wintypes.DWORD,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.HANDLE,
)
for _name in ("ReadFile", "WriteFile"):
    getattr(_kernel, _name).argtypes = (
        wintypes.HANDLE,
        ctypes.c_void_p,
        wintypes.DWORD,
        ctypes.POINTER(wintypes.DWORD),
        ctypes.POINTER(_Overlapped),
    )
_kernel.LockFileEx.argtypes = (
    wintypes.HANDLE,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.DWORD,
    wintypes.DWORD,
    ctypes.POINTER(_Overlapped),
)
_kernel.MoveFileExW.argtypes = (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD)
_kernel.SetFileInformationByHandle.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
_kernel.DeviceIoControl.argtypes = (
    wintypes.HANDLE,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.POINTER(wintypes.DWORD),
    ctypes.c_void_p,
)
_kernel.GetVolumeInformationByHandleW.argtypes = (
    wintypes.HANDLE,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(wintypes.DWORD),
    ctypes.c_void_p,
    wintypes.DWORD,
)
_kernel.GetCurrentProcess.restype = wintypes.HANDLE
_kernel.LocalFree.argtypes = (ctypes.c_void_p,)
_kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
_security.OpenProcessToken.argtypes = (wintypes.HANDLE, wintypes.DWORD, ctypes.POINTER(wintypes.HANDLE))
_security.GetTokenInformation.argtypes = (
    wintypes.HANDLE,
    ctypes.c_int,
    ctypes.c_void_p,
    wintypes.DWORD,
    ctypes.POINTER(wintypes.DWORD),
)
_security.GetSecurityInfo.argtypes = (
    wintypes.HANDLE,
    ctypes.c_int,
    wintypes.DWORD,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)
_security.EqualSid.argtypes = (ctypes.c_void_p, ctypes.c_void_p)


def _error(path: object = None) -> OSError:
    error = ctypes.WinError(ctypes.get_last_error())
    if path is not None:
        error.filename = str(path)
    return error


# --- files ------------------------------------------------------------------------------------------------------------


def open_file(path: str | Path, flags: int, *, follow: bool = True) -> int:
    """Open `path` with the flags of `os.open`; return a descriptor. Without `follow`, a link itself is opened.

    Raises `OSError` as `os.open`.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    access = (0 if writes == os.O_WRONLY else _GENERIC_READ) | (_GENERIC_WRITE if writes else 0)
    attributes = _NORMAL if follow else _NORMAL | _OPEN_REPARSE_POINT
    handle = _kernel.CreateFileW(str(path), access, _SHARE_ALL, None, _disposition(flags), attributes, None)
    if handle == _INVALID_HANDLE:
        raise _error(path)
    return msvcrt.open_osfhandle(handle, flags & (os.O_APPEND | os.O_RDWR | os.O_WRONLY) | os.O_BINARY | os.O_NOINHERIT)


def _disposition(flags: int) -> int:
    if flags & os.O_CREAT:
        return _CREATE_NEW if flags & os.O_EXCL else _CREATE_ALWAYS if flags & os.O_TRUNC else _OPEN_ALWAYS
    return _TRUNCATE_EXISTING if flags & os.O_TRUNC else _OPEN_EXISTING


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Read up to ``len(buffer)`` bytes at `offset`; return the number of bytes read, 0 at the end of the file."""
    length = min(len(buffer), _MAX_TRANSFER)
    if not length:
        return 0
    place = (ctypes.c_char * length).from_buffer(buffer)
    done, at = wintypes.DWORD(), _Overlapped.at(offset)
    if not _kernel.ReadFile(msvcrt.get_osfhandle(fd), place, length, ctypes.byref(done), ctypes.byref(at)):
        if ctypes.get_last_error() == _END_OF_FILE:
            return 0
        raise _error()
    return done.value


def write_some(fd: int, data: memoryview, offset: int) -> int:
    """Write `data` at `offset` in one call; return the number of bytes written."""
    length = min(len(data), _MAX_TRANSFER)
    whole = ctypes.c_char * length
    place = whole.from_buffer_copy(data[:length]) if data.readonly else whole.from_buffer(data[:length])
    done, at = wintypes.DWORD(), _Overlapped.at(offset)
    if not _kernel.WriteFile(msvcrt.get_osfhandle(fd), place, length, ctypes.byref(done), ctypes.byref(at)):
        raise _error()
    return done.value


def set_size(fd: int, size: int) -> None:
    """Give an open file its size. `os.ftruncate` would write zeros; a sparse file is not filled up before a write."""
    handle, ignored = msvcrt.get_osfhandle(fd), wintypes.DWORD()
    _kernel.DeviceIoControl(handle, _SET_SPARSE, None, 0, None, 0, ctypes.byref(ignored), None)  # NTFS and ReFS only
    end = ctypes.c_int64(size)
    if not _kernel.SetFileInformationByHandle(handle, _END_OF_FILE_INFO, ctypes.byref(end), ctypes.sizeof(end)):
        raise _error()


def lock(fd: int) -> bool:
    """Take the exclusive lock of an open file; return False if another handle holds it."""
    at = _Overlapped.at(_LOCKED_BYTE)
    if _kernel.LockFileEx(msvcrt.get_osfhandle(fd), _LOCK_EXCLUSIVE_AT_ONCE, 0, 1, 0, ctypes.byref(at)):
        return True
    return ctypes.get_last_error() not in (_LOCK_VIOLATION, _IO_PENDING)


# --- names ------------------------------------------------------------------------------------------------------------


def move(path: str | Path, target: str | Path, *, replace: bool) -> None:
    """Rename a file, durably; `target` must not exist unless `replace`."""
    flags = _WRITE_THROUGH | (_REPLACE if replace else 0)

    def call() -> None:
        if not _kernel.MoveFileExW(str(path), str(target), flags):
            raise _error(path)

    _patiently(call)


def remove(path: str | Path) -> None:
    """Remove a file's name."""
    _patiently(lambda: os.unlink(path))


def _patiently(call: Callable[[], None]) -> None:
    """Call, and again for a while if another program has the file open without sharing it."""
    end, pause = time.monotonic() + _PATIENCE, 0.005
    while True:
        try:
            return call()
        except OSError as error:
            if error.winerror not in (_ACCESS_DENIED, _SHARING_VIOLATION) or time.monotonic() > end:
                raise
        time.sleep(pause)
        pause *= 2


# --- owners -----------------------------------------------------------------------------------------------------------


def is_own(path: str | Path) -> bool:
    """Whether a file belongs to this user, or to the group that owns files made by an elevated process.

    False on volumes that keep no access lists, and if the owner cannot be read.
    """
    owner, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        fd = open_file(path, os.O_RDONLY, follow=False)
    except OSError:
        return False
    try:
        handle = msvcrt.get_osfhandle(fd)
        if not _volume_flags(handle) & _PERSISTENT_ACLS:
            return False
        one = ctypes.byref
        if _security.GetSecurityInfo(handle, 1, _OWNER, one(owner), None, None, None, one(descriptor)):
            return False
        try:
            return any(_security.EqualSid(owner, sid) for sid, _ in _own_sids())
        finally:
            _kernel.LocalFree(descriptor)
    finally:
        os.close(fd)


def _volume_flags(handle: int) -> int:
    flags = wintypes.DWORD()
    _kernel.GetVolumeInformationByHandleW(handle, None, 0, None, None, ctypes.byref(flags), None, 0)
    return flags.value


@lru_cache(maxsize=1)
def _own_sids() -> tuple[tuple[int, object], ...]:
    """The addresses of the user's SID and of the owner of new files, each with the memory that it is in."""
    token = wintypes.HANDLE()
    if not _security.OpenProcessToken(_kernel.GetCurrentProcess(), _TOKEN_QUERY, ctypes.byref(token)):
        raise _error()
    try:
        return tuple(_sid(token, kind) for kind in (_OWNER, _TOKEN_OWNER))
    finally:
        _kernel.CloseHandle(token)


def _sid(token: wintypes.HANDLE, kind: int) -> tuple[int, object]:
    size = wintypes.DWORD()
    _security.GetTokenInformation(token, kind, None, 0, ctypes.byref(size))
    memory = ctypes.create_string_buffer(size.value)
    if not _security.GetTokenInformation(token, kind, memory, size, ctypes.byref(size)):
        raise _error()
    return ctypes.c_size_t.from_buffer(memory).value, memory  # both structures begin with a pointer to the SID


# --- shared blocks ----------------------------------------------------------------------------------------------------


def clone(source: int, offset: int, target: int, place: int, length: int) -> int:
    """Share blocks of two open files on ReFS; return `length`. Ranges must be whole clusters."""
    extents = _Extents(source=msvcrt.get_osfhandle(source), source_offset=offset, target_offset=place, length=length)
    ignored, handle = wintypes.DWORD(), msvcrt.get_osfhandle(target)
    size = ctypes.sizeof(extents)
    if not _kernel.DeviceIoControl(
        handle, _DUPLICATE_EXTENTS, ctypes.byref(extents), size, None, 0, ctypes.byref(ignored), None
    ):
        raise _error()
    return length


def shares_blocks(fd: int) -> bool:
    """Whether the volume of an open file can share blocks between files."""
    return bool(_volume_flags(msvcrt.get_osfhandle(fd)) & _BLOCK_REFCOUNTING)
