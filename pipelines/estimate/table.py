"""An estimate as a short table for people."""

from __future__ import annotations

from pipelines.estimate.model import Estimate
from pipelines.quantities import byte_text, duration, workers_text

WIDTH = 12


def table(estimate: Estimate) -> str:
    """The lines of an estimate."""
    lines = [f"{estimate.stage}  {estimate.place}"]

    def line(name: str, text: str) -> None:
        lines.append(f"  {name:<{WIDTH}}{text}")

    line(estimate.noun, f"{estimate.inputs:,} ({estimate.known}), {estimate.done:,} of them done")
    for number, (name, size) in enumerate(estimate.disk.items()):
        line("" if number else "disk", f"{name:<16}{byte_text(size):>10}")
    if len(estimate.disk) > 1:
        line("", f"{'total':<16}{byte_text(estimate.disk_total):>10}")
    if estimate.disk_there:
        line("", f"{'there already':<16}{byte_text(estimate.disk_there):>10}")
    to_come = estimate.disk_total - estimate.disk_there
    if estimate.free is not None:
        line("", f"{'free':<16}{byte_text(estimate.free):>10}")
        if to_come > estimate.free:
            line(
                "WARNING",
                f"it does not fit: {byte_text(to_come - estimate.free)} more must be free at the "
                f"place",
            )
    if estimate.memory_total:
        many = f"{estimate.workers} worker{'s' if estimate.workers > 1 else ''}"
        each, total = byte_text(estimate.memory_worker), byte_text(estimate.memory_total)
        line("memory", f"{each} a worker, {total} with {many} and the driver")
    if estimate.workers:
        line(
            "time",
            f"{duration(estimate.seconds)} with {workers_text(estimate.workers)} on this machine",
        )
    for count, seconds in estimate.elsewhere.items():
        line("", f"{duration(seconds)} with {workers_text(count)} as fast as these")
    if estimate.probe:
        told = estimate.probe
        rate = _each(told.seconds_an_input)
        line(
            "probe",
            f"{told.inputs:,} {estimate.noun}, {rate} in one of {workers_text(told.workers)} at "
            f"once "
            f"(spread {100 * told.spread:.0f} %), start {told.start_seconds:.1f} s; it took "
            f"{told.seconds:.0f} s",
        )
    for note in estimate.notes:
        line("note", note)
    return "\n".join(lines)


def _each(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.1f} s each"
    return f"{seconds * 1000:,.0f} ms each" if seconds >= 0.1 else f"{seconds * 1000:,.2g} ms each"
