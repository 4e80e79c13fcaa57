"""What `tests/bench http` found out."""

import statistics
from dataclasses import dataclass, field

from . import load, wrk


@dataclass(frozen=True)
class Place:
    """What was measured: a part of the benchmark, a load, a contestant."""

    part: str
    load: str
    name: str


@dataclass
class Cell:
    """One line of the result; figures are medians of its runs."""

    runs: list[load.Seen] = field(default_factory=list)

    @property
    def rps(self):
        return statistics.median(seen.rps for seen in self.runs)

    def latency_ms(self, which):
        """None if a run has no right answer."""
        seen = [seen.latency_ms(which) for seen in self.runs]
        return None if None in seen else statistics.median(seen)

    @property
    def num_failed(self):
        return sum(seen.num_failed for seen in self.runs)

    @property
    def num_refused(self):
        return sum(seen.num_refused for seen in self.runs)

    @property
    def server_cpus(self):
        return statistics.median(seen.server_cpus for seen in self.runs)

    @property
    def load_cpus(self):
        return statistics.median(seen.load_cpus for seen in self.runs)

    @property
    def peak_bytes(self):
        return max(seen.peak_bytes for seen in self.runs)


@dataclass(frozen=True)
class Overload:
    """What a server did under more than it can do."""

    # Right answers a second just before, in a closed loop.
    peak_rps: float
    rate: float
    seen: load.Seen
    # What a generator saw that asked only for its health meanwhile.
    health: dict
    before_bytes: int
    # When all had gone.
    rest_bytes: int

    @property
    def goodput_share(self):
        return self.seen.rps / self.peak_rps

    @property
    def memory_growth_share(self):
        """Under load still, with its queue full and all connections open."""
        return self.seen.last_bytes / self.before_bytes - 1

    @property
    def later_growth_share(self):
        """Since its first second, when the queue was full already."""
        return self.seen.last_bytes / self.seen.first_bytes - 1

    @property
    def refused_ms(self):
        """Percentiles of the latency of refusals; None if there were none."""
        return self.seen.report["refused_ms"]


@dataclass
class Results:
    """All that was found out."""

    cells: dict[Place, Cell] = field(default_factory=dict)
    # By how it logs.
    noop: dict[str, list[wrk.Seen]] = field(default_factory=dict)
    overload: Overload | None = None
    # What the pilots saw and chose, a line each.
    settings: list[str] = field(default_factory=list)

    def cell(self, part, load_name, name):
        """None if it was not measured."""
        return self.cells.get(Place(part, load_name, name))

    def record(self, part, load_name, name, seen):
        self.cells.setdefault(Place(part, load_name, name), Cell()).runs.append(seen)

    def rps_ratio(self, part, load_name, name, peer):
        """How many times as many answers a second as the peer; None if unknown."""
        one, other = self.cell(part, load_name, name), self.cell(part, load_name, peer)
        return one.rps / other.rps if one and other and other.rps else None

    def latency_ratio(self, part, load_name, name, peer, which):
        """How many times as long the peer takes; None if unknown."""
        cells = [self.cell(part, load_name, each) for each in (name, peer)]
        times = [cell and cell.latency_ms(which) for cell in cells]
        return times[1] / times[0] if all(times) else None

    def memory_ratio(self, part, name, peer):
        """How many times as much memory the peer takes at most in a part; None if unknown."""
        peaks = [
            max(
                (c.peak_bytes for p, c in self.cells.items() if (p.part, p.name) == (part, each)),
                default=0,
            )
            for each in (name, peer)
        ]
        return peaks[1] / peaks[0] if all(peaks) else None

    def other_cpus(self):
        """CPUs that others kept busy, of each run."""
        return sorted(seen.other_cpus for cell in self.cells.values() for seen in cell.runs)
