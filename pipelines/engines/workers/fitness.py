"""A worker process proves, before its first unit, that it can do what its driver expects of it."""

from __future__ import annotations

import contextlib
import time

from pipelines.engines.workers.lease_watch import watch_lease
from pipelines.engines.workers.stall_watch import watch_stalls
from pipelines.engines.workers.ticket import Sample, Ticket, Unfit
from pipelines.engines.workers.versions import differing, own_versions
from pipelines.jobs.lease import read_lease
from pipelines.jobs.worker_process import who, work_as
from pipelines.storage.byte_sources import open_bytes
from pipelines.storage.place import open_place
from schemas.errors import UserError

SEEN_SECONDS = 5.0  # until a network disk shows what another machine has written

_ticket = ""  # that this process was found fit for


def be_fit(ticket: str, *, worker: str = "", host: str = "") -> None:
    """Compare versions, see the driver's token at the output, see a sample of its inputs.

    To be called in each worker process before each unit or share: the second time costs nothing.
    From then on the process ends itself when its driver is silent, or when it stands still at a
    unit, and attempts and markers name it.

    Args:
        ticket: `Ticket.to_json()`, as the driver made it (`Engine.ticket`).
        worker, host: the engine's names of this worker and its machine (worker_process.py).

    Raises Unfit.
    """
    global _ticket
    if ticket == _ticket:
        return

    wanted = Ticket.from_json(ticket)
    work_as(run=wanted.run, engine=wanted.engine, worker=worker, host=host)
    here = who().host
    if wanted.versions and (why := differing(wanted.versions, own_versions(), here)):
        raise Unfit(why)
    if wanted.lease:
        _see_token(wanted, here)
    for sample in wanted.inputs:
        _see(sample, here)
    watch_stalls(wanted.stall_seconds)
    watch_lease(wanted.lease, wanted.run, wanted.lease_seconds)
    _ticket = ticket


def _see_token(ticket: Ticket, host: str) -> None:
    """Raise Unfit where the driver's lease is not to be seen at the output."""
    place = open_place(ticket.lease)
    until = time.monotonic() + SEEN_SECONDS
    while True:
        lease = read_lease(place)
        if lease is not None and lease.run == ticket.run:
            return
        if time.monotonic() > until:
            raise Unfit(
                f"{host} does not see {place.url}: the output must be shared by all workers; "
                f"mount it there, or give a place on S3 or GCS"
            )
        time.sleep(0.2)


def _see(sample: Sample, host: str) -> None:
    """Raise Unfit where a file of the driver's inputs is absent, or another one, or refused."""
    try:
        with contextlib.closing(open_bytes(sample.url)) as source:
            size = source.size
    except (UserError, OSError) as error:
        why = str(error).removeprefix(f"{sample.url}: ")
        raise Unfit(
            f"{host} does not see {sample.url}, which the driver reads ({why}); mount it there, or "
            f"give a URL that both reach"
        ) from error

    if None not in (size, sample.bytes) and size != sample.bytes:
        raise Unfit(
            f"{sample.url} has {size:,} bytes at {host} and {sample.bytes:,} at the driver: it is "
            f"another file; mount the same folder there, or give a URL that both reach"
        )
