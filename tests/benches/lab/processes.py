"""What processes take of the machine, as /proc says."""

import os
from pathlib import Path

TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


def tree(pid):
    """A process, and those it started, and those they did."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            pids += tree(int(child))
    return pids


def machine_cpu_secs():
    """CPU time that all processes have used since the machine started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_SEC


def cpu_secs(pids):
    """CPU time that these processes have used since they started."""
    ticks = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SEC


def memory(pids, sum_="Pss"):
    """A sum of smaps_rollup over these processes, in bytes.

    `Pss`, the proportional set size, counts a page that others have mapped too as a part of one.
    """
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        total += _kib(_fields(rollup)[sum_])
    return total


def resident(pids):
    """Peak and present resident bytes of these processes, together."""
    peak = now = 0
    for pid in pids:
        fields = _fields(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        peak += _kib(fields["VmHWM"])
        now += _kib(fields["VmRSS"])
    return peak, now


def _fields(text):
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _kib(text):
    return int(text.split()[0]) * 1024
