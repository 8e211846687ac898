# SPDX-License-Identifier: BSD-3-Clause
"""The doctor: facts as the machine has them, and a fix for each thing forbidden."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from lazymem import _engine, cli, doctor
from lazymem.doctor import HugePool, Machine, Way

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED = Machine(
    lazymem="1",
    python="3.10.0",
    kernel="6.8.0",
    architecture="x86_64",
    cores=2,
    page_bytes=4096,
    mode="full",
    device=Way("/dev/userfaultfd", None),
    system_call=Way("userfaultfd(2)", None),
    user_mode=Way("userfaultfd(2), user mode only", None),
    handshake_error=None,
    features={"move": True},
    mask="",
    device_minor=126,
    unprivileged_userfaultfd=0,
    sys_ptrace=False,
    seccomp=0,
    container=None,
    thp="madvise",
    huge_pools=(),
    memlock_bytes=None,
    overcommit=0,
    max_map_count=65530,
    codecs=(),
)


def machine(
    device: str | None = None,
    system_call: str | None = None,
    user_mode: str | None = None,
    **facts: object,
) -> Machine:
    return replace(
        ALLOWED,
        device=Way("/dev/userfaultfd", device),
        system_call=Way("userfaultfd(2)", system_call),
        user_mode=Way("userfaultfd(2), user mode only", user_mode),
        **facts,
    )


def lines_of(facts: Machine) -> str:
    return "\n".join(line for fix in doctor.advise(facts) for line in fix.lines)


# ---- facts ---------------------------------------------------------------------------


def test_examine_agrees_with_the_engine() -> None:
    facts = doctor.examine()
    info = _engine.uffd_probe()
    assert facts.mode == doctor.MODES[info.mode]
    assert facts.features == _engine.uffd_features(info.features)
    assert (facts.system_call.error is None) == (info.full_errno == 0)
    assert facts.cores == len(os.sched_getaffinity(0))


def test_modes_are_in_the_order_of_the_engine() -> None:
    lib = _engine.lib
    assert doctor.MODES[lib.LM_UFFD_NONE] == "whole-object load"
    assert doctor.MODES[lib.LM_UFFD_FULL] == "full"
    assert doctor.MODES[lib.LM_UFFD_USER_ONLY] == "user-mode only"


def test_examine_finds_the_codecs_with_their_versions() -> None:
    codecs = {codec.name: codec for codec in doctor.examine().codecs}
    assert set(codecs) == {"lz4", "zstd"}
    for codec in codecs.values():
        assert codec.version is not None
        assert codec.version.startswith("1.")


def test_examine_with_everything_masked_finds_whole_object_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAZYMEM_MASK", "dev,syscall,user")
    facts = doctor.examine()
    assert facts.mode == "whole-object load"
    assert facts.device.error == facts.system_call.error == "EPERM"
    assert facts.user_mode.error == "EPERM"
    assert lines_of(facts) == "\n".join(["unset LAZYMEM_MASK"] * 3)


@pytest.mark.needs_uffd
def test_examine_with_masked_feature_does_not_offer_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAZYMEM_MASK", "thread_id")
    facts = doctor.examine()
    assert facts.features["thread_id"] is False
    assert doctor.advise(facts) == doctor.advise(replace(facts, mask=""))


def test_examine_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    doctor.examine()
    assert dict(os.environ) == before


def test_examine_reads_facts_below_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    files = {
        ".dockerenv": "",
        "proc/misc": "235 autofs\n126 userfaultfd\n",
        "proc/self/status": "Name:\tx\nCapEff:\t0000000000080000\nSeccomp:\t2\n",
        "proc/sys/vm/unprivileged_userfaultfd": "1\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/sys/vm/max_map_count": "1000\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
        "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "8\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = doctor.examine(tmp_path)
    assert facts.container == "docker"
    assert facts.device_minor == 126
    assert facts.sys_ptrace is True
    assert facts.seccomp == 2
    assert facts.unprivileged_userfaultfd == 1
    assert (facts.overcommit, facts.max_map_count) == (2, 1000)
    assert facts.thp == "madvise"
    assert facts.huge_pools == (HugePool(2 << 20, 8, 3), HugePool(1 << 30, 0, 0))


def test_examine_where_nothing_can_be_read_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("container", raising=False)
    facts = doctor.examine(tmp_path)
    assert facts.unprivileged_userfaultfd is None
    assert facts.seccomp is None
    assert facts.sys_ptrace is None
    assert facts.container is None
    assert facts.thp is None
    assert facts.huge_pools == ()


# ---- advice --------------------------------------------------------------------------


def test_advice_where_all_is_allowed_is_none() -> None:
    assert doctor.advise(ALLOWED) == []


def test_advice_for_unreadable_device_is_setfacl_or_chmod() -> None:
    lines = lines_of(machine(device="EACCES"))
    assert "sudo setfacl -m u:$USER:rw /dev/userfaultfd" in lines
    assert "sudo chmod 666 /dev/userfaultfd" in lines
    assert "/etc/udev/rules.d/" in lines


def test_advice_for_unmade_device_is_mknod_with_its_minor() -> None:
    lines = lines_of(machine(device="ENOENT"))
    assert lines == "sudo mknod -m 666 /dev/userfaultfd c 10 126"


def test_advice_for_kernel_without_device_has_no_line() -> None:
    (fix,) = doctor.advise(machine(device="ENOENT", device_minor=None))
    assert "6.1" in fix.why
    assert fix.lines == ()


@pytest.mark.parametrize("error", ["ENOENT", "EPERM"])
def test_advice_for_container_without_device_is_to_give_it(error: str) -> None:
    lines = lines_of(machine(device=error, container="docker"))
    assert lines == "docker run --device /dev/userfaultfd ..."


def test_advice_for_unprivileged_user_is_the_sysctl() -> None:
    (fix,) = doctor.advise(machine(system_call="EPERM"))
    assert fix.what == "userfaultfd(2)"
    assert fix.lines[0] == "sudo sysctl vm.unprivileged_userfaultfd=1"


def test_advice_for_unprivileged_container_adds_the_capability() -> None:
    lines = lines_of(machine(system_call="EPERM", container="docker"))
    assert "docker run --cap-add SYS_PTRACE" in lines


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_advice_for_filter_in_container_is_device_or_seccomp_option(error: str) -> None:
    facts = machine(system_call=error, user_mode=error, seccomp=2, container="docker")
    assert "docker run --device /dev/userfaultfd ..." in lines_of(facts)
    assert "--security-opt seccomp=unconfined" in lines_of(facts)
    assert "sysctl" not in lines_of(facts)


def test_advice_for_filter_of_service_is_its_unit() -> None:
    facts = machine(system_call="EPERM", user_mode="EPERM", seccomp=2)
    assert "SystemCallFilter=userfaultfd" in lines_of(facts)


def test_advice_for_filter_that_lets_user_mode_through_is_the_sysctl() -> None:
    facts = machine(system_call="EPERM", seccomp=2)
    assert "sysctl vm.unprivileged_userfaultfd=1" in lines_of(facts)


def test_advice_for_kernel_without_userfaultfd_has_no_line() -> None:
    facts = machine(device="ENOENT", system_call="ENOSYS", user_mode="ENOSYS")
    fixes = doctor.advise(replace(facts, device_minor=None))
    assert "CONFIG_USERFAULTFD" in fixes[1].why
    assert lines_of(replace(facts, device_minor=None)) == ""


def test_advice_for_kernel_without_user_mode_names_the_version() -> None:
    (fix,) = doctor.advise(machine(user_mode="EINVAL"))
    assert "5.11" in fix.why


# ---- the verb ------------------------------------------------------------------------


def test_doctor_json_holds_facts_and_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYMEM_MASK", "dev,syscall,user")
    result = CliRunner().invoke(cli.cli, ["doctor", "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["machine"]["mode"] == "whole-object load"
    assert [fix["lines"] for fix in told["fixes"]] == [["unset LAZYMEM_MASK"]] * 3


def test_doctor_tells_mode_and_features() -> None:
    result = CliRunner().invoke(cli.cli, ["doctor"])
    assert result.exit_code == 0
    mode = doctor.MODES[_engine.uffd_probe().mode]
    assert f"lazymem works in mode {mode}:" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    has_move = _engine.uffd_features(_engine.uffd_probe().features)["move"]
    assert ["move", "yes" if has_move else "no"] in rows
