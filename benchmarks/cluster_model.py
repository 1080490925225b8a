"""A model of a meta-step's time and memory on devices that are not at hand.

Time on one device is the larger of operations over the rate at which it multiplies and bytes
over the rate at which it reads and writes, and for every kernel the time to start it. Between
devices θ is summed once a meta-step; where components are spread, updates (forward) and
cotangents (in reverse) are gathered at every inner step. Peak rates are the makers' published
ones; the efficiencies are assumptions, and so are the numbers that follow from them.
"""

from __future__ import annotations

import dataclasses
import math

from optdyn.meta_training._memory import StepMemory, fit_to_budget

NUM_STEPS = 200
BATCH = 32
FLOAT = 4
PRODUCTS_EFFICIENCY = 0.5
"""Of the peak rate, in products with an operand of a few hundred columns."""
MEMORY_EFFICIENCY = 0.7
KERNELS_A_STEP = 60
"""Kernels that the forward and the reverse pass of an inner step start."""
PASSES_OVER_KEPT = 3
"""Times that what a step keeps crosses the memory's bus: written, read, and its cotangent."""
USABLE_MEMORY = 0.8
ONE_LEVEL, TWO_LEVELS = 4 / 3, 5 / 3
"""Work with steps computed again, once or (nested checkpointing) twice: a third each."""


@dataclasses.dataclass(frozen=True)
class Device:
    """Published peak rates: float32 operations and bytes a second, bytes of memory."""

    name: str
    peak: float
    bandwidth: float
    memory: float
    launch: float
    """Seconds to start a kernel."""


@dataclasses.dataclass(frozen=True)
class Link:
    """Bytes a second in each direction, and seconds of latency."""

    name: str
    bandwidth: float
    latency: float

    def sum(self, size: float, devices: int) -> float:
        """Seconds to sum ``size`` bytes over ``devices``: a ring's volume, a tree's latency."""
        if devices == 1:
            return 0.0
        volume = 2 * (devices - 1) / devices * size
        return volume / self.bandwidth + 2 * math.log2(devices) * self.latency

    def gather(self, size: float, devices: int) -> float:
        """Seconds until each of ``devices`` has the ``size`` bytes of which it had one part."""
        if devices == 1:
            return 0.0
        volume = (devices - 1) / devices * size
        return volume / self.bandwidth + math.log2(devices) * self.latency


H100 = Device("H100 SXM", peak=67e12, bandwidth=3.35e12, memory=80e9, launch=4e-6)
NVLINK = Link("NVLink, 450 GB/s", 450e9, 3e-6)
INFINIBAND = Link("InfiniBand, 400 Gb/s", 50e9, 5e-6)
ETHERNET = Link("Ethernet, 10 Gb/s", 1.25e9, 50e-6)
DEVICES_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Workload:
    """One problem of a meta-step of `NUM_STEPS` inner steps.

    ``flops``: of its matrix products, nothing computed twice. ``step``: what it keeps.
    ``parameters``: of the inner problem; ``theta``: the number of meta-parameters.
    """

    task: str
    units: int
    parameters: int
    theta: int
    flops: float
    step: StepMemory

    def share(self, components: int) -> Workload:
        """The part of one of ``components`` devices that share the problem's components."""
        return dataclasses.replace(
            self,
            flops=self.flops / components,
            step=StepMemory(self.step.kept // components, self.step.carry // components),
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a meta-step, and bytes of each device."""

    seconds: float
    bytes: float


def on_devices(work: Workload, device: Device, count: int) -> Estimate:
    """A meta-step of `BATCH` problems on ``count`` devices.

    Problems are spread first; devices beyond their number share components, as far as there
    is one for each.
    """
    over_problems = min(count, BATCH)
    components = min(max(1, count // over_problems), work.parameters)
    link = NVLINK if count <= DEVICES_A_HOST else INFINIBAND
    problems = math.ceil(BATCH / over_problems)
    own = work.share(components)
    seconds, size = alone(own, device, problems)
    seconds += link.sum(FLOAT * work.theta, over_problems * components)
    gathered = FLOAT * problems * work.parameters
    seconds += 2 * NUM_STEPS * NVLINK.gather(gathered, components)
    return Estimate(seconds, size)


def alone(own: Workload, device: Device, problems: int) -> tuple[float, float]:
    """Seconds and bytes of ``problems`` on one device, with no other to wait for."""
    segment, chunk = fit_to_budget(
        own.step, int(USABLE_MEMORY * device.memory), num_steps=NUM_STEPS, batch=problems
    )
    again = 1.0 if segment is None else ONE_LEVEL
    seconds = busy(own, device, problems, again, math.ceil(problems / chunk))
    return seconds, own.step.needed(NUM_STEPS, chunk, segment)


def busy(own: Workload, device: Device, problems: int, again: float, chunks: int = 1) -> float:
    """Seconds of computing, everything being done ``again`` times."""
    flops = again * problems * own.flops
    moved = again * PASSES_OVER_KEPT * problems * NUM_STEPS * own.step.kept
    started = again * NUM_STEPS * KERNELS_A_STEP * chunks * device.launch
    return started + max(
        flops / (PRODUCTS_EFFICIENCY * device.peak),
        moved / (MEMORY_EFFICIENCY * device.bandwidth),
    )
