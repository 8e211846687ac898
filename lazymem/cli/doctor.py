# SPDX-License-Identifier: BSD-3-Clause
"""The verb that tells what this machine allows."""

from __future__ import annotations

from dataclasses import asdict

import click

from lazymem import doctor
from lazymem.cli.app import cli
from lazymem.cli.options import json_option
from lazymem.cli.show import print_facts, print_json

_MODES = {
    "full": "arrays fill on first touch, by code and by system calls alike",
    "user-mode only": "arrays fill on first touch by code; system calls (write, send, "
    "...) on memory not yet filled fail with EFAULT: load() the array first",
    "whole-object load": "nothing can fill an array on first touch: it is loaded whole "
    "when it is taken from its store",
}


@cli.command("doctor")
@json_option
def doctor_verb(as_json: bool) -> None:
    """Tell what this machine allows, and how to make it allow more."""
    machine = doctor.examine()
    fixes = doctor.advise(machine)
    if as_json:
        print_json(
            {"machine": asdict(machine), "fixes": [asdict(fix) for fix in fixes]}
        )
        return
    print_facts(_machine_facts(machine))
    for fix in fixes:
        click.echo(f"\n{fix.what} is not available: {fix.why}.")
        if fix.lines:
            click.echo("Any of these allows it:" if fix.lines[1:] else "To allow it:")
        for line in fix.lines:
            click.echo(f"    {line}")
    click.echo(f"\nlazymem works in mode {machine.mode}: {_MODES[machine.mode]}.")


def _machine_facts(machine: doctor.Machine) -> dict[str, object]:
    ways = (machine.device, machine.system_call, machine.user_mode)
    memlock = machine.memlock_bytes
    return {
        "lazymem": f"{machine.lazymem}, Python {machine.python}",
        "kernel": f"Linux {machine.kernel}, {machine.architecture}",
        "cores": machine.cores,
        "page": _kib(machine.page_bytes),
        **{way.name: f"no: {way.error}" if way.error else "yes" for way in ways},
        **({"API": machine.handshake_error} if machine.handshake_error else {}),
        **{f"  {key}": _yes(has) for key, has in machine.features.items()},
        "LAZYMEM_MASK": machine.mask or None,
        "vm.unprivileged_userfaultfd": machine.unprivileged_userfaultfd,
        "CAP_SYS_PTRACE": _yes(machine.sys_ptrace),
        "seccomp": {None: None, 0: "no filter", 1: "strict", 2: "a filter is in force"}[
            machine.seccomp
        ],
        "container": machine.container or "none seen",
        "transparent huge pages": machine.thp,
        **{
            f"huge pages of {_kib(pool.page_bytes)}": (
                f"{pool.pages}, {pool.pages_free} free"
            )
            for pool in machine.huge_pools
        },
        "locked memory": "unlimited" if memlock is None else _kib(memlock),
        "vm.overcommit_memory": machine.overcommit,
        "vm.max_map_count": machine.max_map_count,
        **{
            codec.name: f"{codec.version}, {codec.library}" if codec.version else "none"
            for codec in machine.codecs
        },
    }


def _kib(nbytes: int) -> str:
    return f"{nbytes >> 10} KiB"


def _yes(has: bool | None) -> str | None:
    return None if has is None else "yes" if has else "no"
