"""Many requests on one device: queueing, batches of units of several requests, faults that stay with their request."""

from varsr_engine.engine.scheduling.handle import Handle
from varsr_engine.engine.scheduling.protocol import Abandoned, Checkpoint, Event, Job, Runner, Unit
from varsr_engine.engine.scheduling.report import Health, Stats
from varsr_engine.engine.scheduling.scheduler import Scheduler

__all__ = ["Abandoned", "Checkpoint", "Event", "Handle", "Health", "Job", "Runner", "Scheduler", "Stats", "Unit"]
