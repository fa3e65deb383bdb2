"""Beam: a job's units as a transform of anyone's pipeline, and as pipelines on any runner of it."""

from pipelines.engines.beam.transform import (
    NAMESPACE,
    Finish,
    Outcomes,
    RunUnits,
    UnitFailure,
    UnitResult,
)

__all__ = ["NAMESPACE", "Finish", "Outcomes", "RunUnits", "UnitFailure", "UnitResult"]
