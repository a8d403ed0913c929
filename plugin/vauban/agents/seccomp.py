"""The system calls that the jailed emulator may make; every other is refused by the kernel.

The filter is compiled by libseccomp and handed to bubblewrap. It is an allow-list: no socket can be
created at all (what QEMU talks through is handed to it), so neither the network nor AF_VSOCK, which
no network namespace closes, can be reached by an emulator that a guest has taken over.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
from typing import Final

from vauban.errors import NoIsolation

ALLOWED: Final = (
    # memory
    "brk", "madvise", "mmap", "mprotect", "mremap", "munmap", "membarrier", "mincore", "msync",
    # files that are open, or that the jail shows
    "access", "close", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fallocate",
    "fcntl", "fdatasync", "flock", "fstat", "fstatfs", "fsync", "ftruncate", "getcwd",
    "getdents64", "ioctl", "lseek", "lstat", "newfstatat", "open", "openat", "pread64", "preadv",
    "pwrite64", "pwritev", "read", "readlink", "readlinkat", "readv", "stat", "statfs", "statx",
    "write", "writev",
    # waiting and what wakes
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "pipe2", "poll",
    "ppoll", "pselect6", "select", "timerfd_create", "timerfd_gettime", "timerfd_settime",
    # sockets that were handed over
    "getpeername", "getsockname", "getsockopt", "recvfrom", "recvmsg", "sendmsg", "sendto",
    "setsockopt", "shutdown",
    # threads, time, signals
    "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group", "futex",
    "gettimeofday", "nanosleep", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "sched_getaffinity", "sched_getparam",
    "sched_getscheduler", "sched_yield", "set_robust_list", "set_tid_address", "sigaltstack",
    "signalfd4", "tgkill", "time",
    # about itself
    "arch_prctl", "capget", "execve", "getegid", "geteuid", "getgid", "getpgrp", "getpid",
    "getppid", "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage", "gettid",
    "getuid", "prlimit64", "seccomp", "sysinfo", "times", "umask", "uname", "wait4",
)  # fmt: skip
PRCTL: Final = (15, 29, 33, 38)
"""Of prctl: PR_SET_NAME, PR_SET_TIMERSLACK, PR_MCE_KILL, PR_SET_NO_NEW_PRIVS. With
PR_SET_PDEATHSIG an emulator would outlive its jail."""
NAMESPACE_FLAGS: Final = 0x7E020080  # every CLONE_NEW* that clone(2) takes
CLONE_THREAD: Final = 0x00010000

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_MASKED_EQ: Final = 7


class _Comparison(ctypes.Structure):
    """libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def emulator_filter() -> int:
    """A descriptor of the compiled filter, at its start.

    :raises NoIsolation: libseccomp is missing, or refuses the list.
    """
    name = ctypes.util.find_library("seccomp")
    if name is None:
        raise NoIsolation("libseccomp is missing; install the package libseccomp2")
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | errno.EPERM)))
    try:
        for call in ALLOWED:
            if (number := library.seccomp_syscall_resolve_name(call.encode())) >= 0:
                _checked(library.seccomp_rule_add(context, _ALLOW, number, 0), call)
        # Threads, but no processes and no namespaces. The flags of clone3 lie in memory, where no
        # filter can look, so it is "not there", and the C library falls back to clone.
        clone = library.seccomp_syscall_resolve_name(b"clone")
        only_thread = _Comparison(0, _MASKED_EQ, NAMESPACE_FLAGS | CLONE_THREAD, CLONE_THREAD)
        _checked(library.seccomp_rule_add_array(
            context, _ALLOW, clone, 1, ctypes.byref(only_thread)), "clone")  # fmt: skip
        prctl = library.seccomp_syscall_resolve_name(b"prctl")
        for option in PRCTL:
            # The kernel reads 32 bits of it, whatever stands above them.
            this = _Comparison(0, _MASKED_EQ, 0xFFFFFFFF, option)
            _checked(library.seccomp_rule_add_array(
                context, _ALLOW, prctl, 1, ctypes.byref(this)), "prctl")  # fmt: skip
        clone3 = library.seccomp_syscall_resolve_name(b"clone3")
        _checked(library.seccomp_rule_add(context, _ERRNO | errno.ENOSYS, clone3, 0), "clone3")
        descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        _checked(library.seccomp_export_bpf(context, descriptor), "the filter")
    finally:
        library.seccomp_release(context)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _checked(status: int, what: str) -> None:
    if status != 0:
        raise NoIsolation(f"libseccomp refuses {what}: {os.strerror(-status)}")
