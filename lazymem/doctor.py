# SPDX-License-Identifier: BSD-3-Clause
"""What this machine allows, and the lines that make it allow more.

:func:`examine` gathers facts and judges nothing; :func:`advise` turns facts into fixes
and reads nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazymem import _engine
from lazymem._version import __version__

_CAP_SYS_PTRACE = 19
_SECCOMP_FILTER = 2
MODES = ("whole-object load", "full", "user-mode only")
"""By number of the engine's ``enum lm_uffd_mode``."""
_MASKS = ("", "syscall,user", "dev,user", "dev,syscall")
"""All ways of opening a userfaultfd, then the device, the calls, each alone."""
_CODEC_LIBRARIES = (
    ("lz4", ("lz4", "block", "_block"), "LZ4_versionString"),
    ("zstd", ("zstandard", "_cffi"), "ZSTD_versionString"),
)


@dataclass(frozen=True)
class Way:
    """One way to open a userfaultfd."""

    name: str
    """What it is called."""
    error: str | None
    """Why it fails, as the kernel names it (``"EPERM"``); None: it works."""


@dataclass(frozen=True)
class HugePool:
    """Huge pages of one size that the administrator has set aside."""

    page_bytes: int
    """Size of a page."""
    pages: int
    """Pages in the pool."""
    pages_free: int
    """Of these, unused."""


@dataclass(frozen=True)
class Codec:
    """A compression library, as the engine finds it."""

    name: str
    """``"lz4"`` or ``"zstd"``."""
    version: str | None
    """The library's own version; None: not found."""
    library: str | None
    """The shared object it is in."""


@dataclass(frozen=True)
class Machine:
    """What a process may do here.  None stands for what could not be found out."""

    lazymem: str
    """Version of lazymem."""
    python: str
    """Version of Python."""
    kernel: str
    """Release of the kernel."""
    architecture: str
    """The processor's, as ``uname -m`` names it."""
    cores: int
    """Cores that this process may run on."""
    page_bytes: int
    """Size of a page."""
    mode: str
    """How lazymem fills arrays: one of :data:`MODES`."""
    device: Way
    """/dev/userfaultfd."""
    system_call: Way
    """userfaultfd(2), for faults of user code and of the kernel."""
    user_mode: Way
    """userfaultfd(2), for faults of user code only."""
    handshake_error: str | None
    """Why the kernel refused the API after a userfaultfd was opened."""
    features: dict[str, bool]
    """Features of userfaultfd by name, and whether they are offered."""
    mask: str
    """LAZYMEM_MASK: what is switched off on purpose."""
    device_minor: int | None
    """Minor number of the device, where the kernel has one."""
    unprivileged_userfaultfd: int | None
    """The sysctl vm.unprivileged_userfaultfd."""
    sys_ptrace: bool | None
    """Whether the process has CAP_SYS_PTRACE."""
    seccomp: int | None
    """0: no system call is filtered; 1: strict; 2: a filter is in force."""
    container: str | None
    """Kind of container that this seems to be."""
    thp: str | None
    """Transparent huge pages: ``"always"``, ``"madvise"`` or ``"never"``."""
    huge_pools: tuple[HugePool, ...]
    """Pools of huge pages, by page size."""
    memlock_bytes: int | None
    """Limit of locked memory; None: unlimited."""
    overcommit: int | None
    """The sysctl vm.overcommit_memory: 0 heuristic, 1 always, 2 never."""
    max_map_count: int | None
    """The sysctl vm.max_map_count: mappings that a process may have."""
    codecs: tuple[Codec, ...]
    """Compression libraries."""


@dataclass(frozen=True)
class Fix:
    """How to allow what is forbidden."""

    what: str
    """What is forbidden."""
    why: str
    """What forbids it."""
    lines: tuple[str, ...]
    """Lines for a shell, any of which allows it; empty: no line can."""


# ---- facts ---------------------------------------------------------------------------


def examine(root: Path = Path("/")) -> Machine:
    """Find out what this process may do.

    Parameters
    ----------
    root : pathlib.Path, optional
        The folder that holds ``proc`` and ``sys``.

    Returns
    -------
    Machine

    Notes
    -----
    Starts a process of its own, which opens and closes a userfaultfd in each way.
    """
    any_way, device, system_call, user_mode = _probe_all()
    status = _status(root / "proc/self/status")
    seccomp = status.get("Seccomp")
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    vm = root / "proc/sys/vm"
    return Machine(
        lazymem=__version__,
        python=platform.python_version(),
        kernel=platform.release(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        page_bytes=resource.getpagesize(),
        mode=any_way["mode"],
        device=Way("/dev/userfaultfd", device["device"]),
        system_call=Way("userfaultfd(2)", system_call["system_call"]),
        user_mode=Way("userfaultfd(2), user mode only", user_mode["user_mode"]),
        handshake_error=any_way["handshake"],
        features=any_way["features"],
        mask=os.environ.get("LAZYMEM_MASK", ""),
        device_minor=_device_minor(root / "proc/misc"),
        unprivileged_userfaultfd=_integer(vm / "unprivileged_userfaultfd"),
        sys_ptrace=_has_sys_ptrace(status.get("CapEff")),
        seccomp=None if seccomp is None else int(seccomp),
        container=_container(root),
        thp=_chosen(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        huge_pools=_huge_pools(root / "sys/kernel/mm/hugepages"),
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        overcommit=_integer(vm / "overcommit_memory"),
        max_map_count=_integer(vm / "max_map_count"),
        codecs=tuple(_codec(*library) for library in _CODEC_LIBRARIES),
    )


def _probe_all() -> list[dict[str, Any]]:
    """Probe under each of the masks, in a process with its own environment."""
    code = "from lazymem import doctor; doctor._print_probes()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends that one
    )
    probes: list[dict[str, Any]] = json.loads(done.stdout)
    return probes


def _print_probes() -> None:
    users_mask = os.environ.get("LAZYMEM_MASK", "")
    probes = []
    for mask in _MASKS:
        os.environ["LAZYMEM_MASK"] = f"{users_mask},{mask}"
        info = _engine.uffd_probe()
        probes.append(
            {
                "mode": MODES[info.mode],
                "device": _errno_name(info.dev_errno),
                "system_call": _errno_name(info.full_errno),
                "user_mode": _errno_name(info.user_errno),
                "handshake": _errno_name(info.api_errno),
                "features": _engine.uffd_features(info.features),
            }
        )
    print(json.dumps(probes))


def _errno_name(number: int) -> str | None:
    return errno.errorcode.get(number, str(number)) if number else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _read(path)
    return None if text is None else int(text)


def _status(path: Path) -> dict[str, str]:
    lines = (_read(path) or "").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {key: value.strip() for key, _, value in pairs}


def _has_sys_ptrace(capabilities: str | None) -> bool | None:
    if capabilities is None:
        return None
    return bool(int(capabilities, 16) >> _CAP_SYS_PTRACE & 1)


def _device_minor(path: Path) -> int | None:
    for line in (_read(path) or "").splitlines():
        minor, name = line.split()
        if name == "userfaultfd":
            return int(minor)
    return None


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return os.environ.get("container")  # noqa: SIM112 - systemd's name for it


def _chosen(path: Path) -> str | None:
    """Return the word in brackets, as in ``always [madvise] never``."""
    return (_read(path) or "").partition("[")[2].partition("]")[0] or None


def _huge_pools(folder: Path) -> tuple[HugePool, ...]:
    pools = [
        HugePool(
            page_bytes=int(pool.name[len("hugepages-") : -len("kB")]) << 10,
            pages=_integer(pool / "nr_hugepages") or 0,
            pages_free=_integer(pool / "free_hugepages") or 0,
        )
        for pool in folder.glob("hugepages-*kB")
    ]
    return tuple(sorted(pools, key=lambda pool: pool.page_bytes))


def _codec(name: str, module: tuple[str, ...], symbol: str) -> Codec:
    """Look where the engine looks: in the Python package, then in the system."""
    package, *inner = module
    paths = (_engine.extension_file(package, *inner), ctypes.util.find_library(name))
    for path in filter(None, paths):
        try:
            function = getattr(ctypes.CDLL(path), symbol)
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_char_p
        return Codec(name, function().decode(), path)
    return Codec(name, None, None)


# ---- advice --------------------------------------------------------------------------


def advise(machine: Machine) -> list[Fix]:
    """Return a fix for everything that is forbidden.

    Notes
    -----
    One way that works is enough; fixes of the others are for those who want them.
    """
    masked = machine.mask.split(",")
    ways = (
        ("dev", machine.device, _fix_device),
        ("syscall", machine.system_call, _fix_system_call),
        ("user", machine.user_mode, _fix_user_mode),
    )
    fixes = []
    for name, way, fix in ways:
        if name in masked:
            why = "it is switched off by LAZYMEM_MASK"
            fixes.append(Fix(way.name, why, ("unset LAZYMEM_MASK",)))
        elif way.error is not None:
            why, *lines = fix(machine, way.error)
            fixes.append(Fix(way.name, why, tuple(lines)))
    return fixes


_DOCKER_DEVICE = "docker run --device /dev/userfaultfd ..."
_DOCKER_ROOT = "docker run --user 0 --device /dev/userfaultfd ..."
_DOCKER_SECCOMP = (
    "docker run --cap-add SYS_PTRACE --security-opt seccomp=unconfined ..."
)
_CHMOD = "sudo chmod 666 /dev/userfaultfd"
_UDEV_RULE = (
    """echo 'KERNEL=="userfaultfd", MODE="0666"' | """
    "sudo tee /etc/udev/rules.d/60-userfaultfd.rules  # for all users, for good"
)
_SYSCTL = "sudo sysctl vm.unprivileged_userfaultfd=1"
_SYSCTL_FOR_GOOD = (
    "echo 'vm.unprivileged_userfaultfd = 1' | "
    "sudo tee /etc/sysctl.d/60-userfaultfd.conf  # from the next boot on"
)
_NO_CONFIG = "the kernel was built without CONFIG_USERFAULTFD"


def _fix_device(machine: Machine, error: str) -> tuple[str, ...]:
    if error == "EACCES":
        why = "the device's permissions do not let you open it"
        if machine.container:
            return why, f"{_CHMOD}  # on the host", _DOCKER_ROOT
        acl = "sudo setfacl -m u:$USER:rw /dev/userfaultfd"
        return why, acl, _CHMOD, _UDEV_RULE
    if machine.container:
        return "the container was not given the device", _DOCKER_DEVICE
    if error == "ENOENT" and machine.device_minor is not None:
        mknod = f"sudo mknod -m 666 /dev/userfaultfd c 10 {machine.device_minor}"
        return "the kernel has the device, but /dev does not", mknod
    if error == "ENOENT":
        return ("the kernel has no such device: it came with Linux 6.1",)
    return (f"opening it fails with {error}",)


def _is_filtered(machine: Machine) -> bool:
    """Tell a filter's refusal: the kernel's own never meets user mode."""
    is_refused = machine.user_mode.error in ("EPERM", "ENOSYS")
    return machine.seccomp == _SECCOMP_FILTER and is_refused


def _fix_system_call(machine: Machine, error: str) -> tuple[str, ...]:
    if _is_filtered(machine):
        if machine.container:
            why = "the container's seccomp profile refuses the system call"
            return why, f"{_DOCKER_DEVICE}  # enough by itself", _DOCKER_SECCOMP
        unit = "sudo systemctl edit UNIT  # [Service] SystemCallFilter=userfaultfd"
        return "a seccomp filter refuses the system call", unit
    if error == "ENOSYS":
        return (_NO_CONFIG,)
    if error == "EPERM":
        why = "vm.unprivileged_userfaultfd is 0, and the process lacks CAP_SYS_PTRACE"
        if machine.container:
            capability = "docker run --cap-add SYS_PTRACE ..."
            return why, f"{_SYSCTL}  # on the host", capability
        return why, _SYSCTL, _SYSCTL_FOR_GOOD
    return (f"it fails with {error}",)


def _fix_user_mode(machine: Machine, error: str) -> tuple[str, ...]:
    if error == "EINVAL":
        return ("the kernel has no user mode only: it came with Linux 5.11",)
    return _fix_system_call(machine, error)
