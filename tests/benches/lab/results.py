"""What is measured and what was found: workloads, cells of the result, the machine's limit."""

from dataclasses import dataclass, field

from .ab import Timings

OURS = {"int8": "sanderling int8", "bf16": "sanderling bf16", "f32": "sanderling f32"}
ORT_INT8, ORT_F32 = "ORT int8", "ORT f32"
WEIGHT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}


@dataclass(frozen=True)
class Workload:
    """Batches of texts that are run one behind the other."""

    name: str
    # Token counts of the texts of each batch.
    batches: tuple[tuple[int, ...], ...]
    # Whether a process that only spins runs beside it.
    is_busy: bool = False

    @property
    def text(self):
        """As the line protocol has it."""
        return ";".join(",".join(map(str, lengths)) for lengths in self.batches)


@dataclass(frozen=True)
class Cell:
    """One line of the result: an engine on a workload."""

    model: str
    num_threads: int
    workload: str
    engine: str
    timings: Timings
    # The least time that this machine could take in the engine's precision.
    limit_ms: float

    @property
    def limit_share(self):
        return self.limit_ms / self.timings.median_ms


@dataclass
class Results:
    """All that was found out."""

    cells: list[Cell] = field(default_factory=list)
    # Operations and bytes per second, by number of threads.
    limits: dict[int, dict[str, float]] = field(default_factory=dict)
    call_overhead_us: float = 0.0
    # What the pilots saw and chose, a line each.
    ort_settings: list[str] = field(default_factory=list)
    # Largest difference to ONNX Runtime's f32 logits, by engine.
    differences: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def cell(self, model, num_threads, workload, engine):
        """None if this was not measured."""
        wanted = (model, num_threads, workload, engine)
        for cell in self.cells:
            if (cell.model, cell.num_threads, cell.workload, cell.engine) == wanted:
                return cell
        return None

    def other_cpus(self, share=0.5):
        """The percentile `share` of the CPUs that other processes used; 0 if nothing was measured."""
        seen = sorted(cpus for cell in self.cells for cpus in cell.timings.other_cpus)
        return seen[int(share * (len(seen) - 1))] if seen else 0.0

    def speed_ratio(self, cell, peer):
        """How many times faster `cell` is than the same workload on `peer`; None if unknown."""
        other = self.cell(cell.model, cell.num_threads, cell.workload, peer)
        return other.timings.median_ms / cell.timings.median_ms if other else None


def limit_ms(shape, workload, precision, limits):
    """The time below which this machine cannot run the workload.

    Arithmetic at its highest rate, or reading all weights from memory if that takes longer. What is
    neither a linear layer nor attention is taken to be free, and padding to be no work. Where
    linear layers are in int8, attention is in f32.
    """
    linear_rate = limits[f"{precision}_per_s"]
    attention_rate = limits["f32_per_s" if precision == "int8" else f"{precision}_per_s"]
    weight_bytes = shape.num_linear_weights * WEIGHT_BYTES[precision]
    secs = 0.0
    for lengths in workload.batches:
        linear_secs = 2 * shape.num_linear_weights * sum(lengths) / linear_rate
        attention_operations = sum(shape.attention_operations(length) for length in lengths)
        arithmetic_secs = linear_secs + attention_operations / attention_rate
        secs += max(arithmetic_secs, weight_bytes / limits["bytes_per_s"])
    return secs * 1e3


def three_digits(number):
    """As text, with three significant digits at least."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"
