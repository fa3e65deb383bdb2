"""An estimate as a short table for people."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.estimate.model import Estimate
from pipelines.quantities import byte_text, duration, workers_text


def table(estimate: Estimate) -> str:
    """The lines of an estimate."""
    named = "\n".join(f"  {name:<12}{text}" for name, text in _lines(estimate))
    return f"{estimate.stage}  {estimate.place}\n{named}"


def _lines(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """(name, text) of each line."""
    yield estimate.noun, f"{estimate.inputs:,} ({estimate.known}), {estimate.done:,} of them done"

    sizes = dict(estimate.disk)
    if len(sizes) > 1:
        sizes["total"] = estimate.disk_total
    if estimate.disk_there:
        sizes["in place already"] = estimate.disk_there
    if estimate.free is not None:
        sizes["free"] = estimate.free
    for number, (name, size) in enumerate(sizes.items()):
        yield "" if number else "disk", f"{name:<16}{byte_text(size):>10}"

    to_come = estimate.disk_total - estimate.disk_there
    if estimate.free is not None and to_come > estimate.free:
        more = byte_text(to_come - estimate.free)
        yield "WARNING", f"it does not fit: {more} more must be free at the place"

    workers = workers_text(estimate.workers)
    if estimate.memory_total:
        each, total = byte_text(estimate.memory_worker), byte_text(estimate.memory_total)
        yield "memory", f"{each} a worker, {total} with {workers} and the driver"
    if estimate.workers:
        yield "time", f"{duration(estimate.seconds)} with {workers} on this machine"
    for count, seconds in estimate.elsewhere.items():
        yield "", f"{duration(seconds)} with {workers_text(count)} as fast as these"

    if probe := estimate.probe:
        each = f"{_each(probe.seconds_an_input)} in one of {workers_text(probe.workers)} at once"
        took = f"start {probe.start_seconds:.1f} s; it took {probe.seconds:.0f} s"
        spread = f"(spread {100 * probe.spread:.0f} %)"
        yield "probe", f"{probe.inputs:,} {estimate.noun}, {each} {spread}, {took}"
    for note in estimate.notes:
        yield "note", note


def _each(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.1f} s each"
    return f"{seconds * 1000:,.0f} ms each" if seconds >= 0.1 else f"{seconds * 1000:,.2g} ms each"
