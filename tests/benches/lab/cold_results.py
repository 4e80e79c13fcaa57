"""What `tests/bench cold` found out."""

import statistics
from dataclasses import dataclass, field

from .contestants import Contestant
from .starts import Stage, Start


@dataclass
class Row:
    """One line of the result: a contestant with a model."""

    model: str
    contestant: Contestant
    # What reading the weights once takes, if nothing but memory limits it.
    memory_ms: float
    starts: list[Start] = field(default_factory=list)
    downloads_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self):
        return statistics.median(start.answer_ms for start in self.starts)

    def percentile_ms(self, share):
        ordered = sorted(start.answer_ms for start in self.starts)
        return ordered[round(share * (len(ordered) - 1))]

    @property
    def peak_bytes(self):
        return statistics.median(start.peak_bytes for start in self.starts)

    @property
    def resident_bytes(self):
        return statistics.median(start.resident_bytes for start in self.starts)

    @property
    def weights_bytes(self):
        return self.contestant.weights.stat().st_size

    @property
    def download_ms(self):
        """What a plain download of the weights took; None if they do not come over a network."""
        return statistics.median(self.downloads_ms) if self.downloads_ms else None

    @property
    def over_floor(self):
        return self.median_ms / (self.download_ms or self.memory_ms)

    def stages(self):
        """Medians of the stages of its starts, in the order they begin."""
        seen = {}
        for start in self.starts:
            for stage in start.stages:
                seen.setdefault(stage.name, []).append(stage)
        medians = [
            Stage(
                name,
                statistics.median(stage.start_ms for stage in stages),
                statistics.median(stage.duration_ms for stage in stages),
            )
            for name, stages in seen.items()
        ]
        return sorted(medians, key=lambda stage: (stage.start_ms, stage.duration_ms))


@dataclass
class Results:
    """All that was found out."""

    rows: list[Row] = field(default_factory=list)
    memory_bytes_per_s: float = 0.0
    exec_ms: float = 0.0
    # What the pilots saw and chose, a line each.
    settings: list[str] = field(default_factory=list)
    # By model: the first start of all, which packs the export.
    packing: dict[str, Start] = field(default_factory=dict)
    # By model: proportional set sizes of two processes of ours on one cache.
    shared_bytes: dict[str, list[int]] = field(default_factory=dict)
    # For each round: how many CPUs others kept busy.
    other_cpus: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(self, model, contestant):
        """None if it was not measured."""
        for row in self.rows:
            if (row.model, row.contestant.name) == (model, contestant) and row.starts:
                return row
        return None

    def speed_ratio(self, model, contestant, peer):
        """How many times sooner the contestant answers than the peer; None if unknown."""
        ours, other = self.row(model, contestant), self.row(model, peer)
        return other.median_ms / ours.median_ms if ours and other else None
