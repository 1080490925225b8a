"""Join the other processes of a training."""

from __future__ import annotations

import atexit
import inspect
import os
from typing import TYPE_CHECKING, Any

from optdyn.distributed._processes import Processes
from optdyn.distributed._watch import SILENCE, Hub, Spoke
from optdyn.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import PyTree

STARTING = 300
"""Seconds to wait for all processes to come."""

BACKSTOP = int(3 * SILENCE)
"""Seconds after which JAX itself ends a process that misses another."""

NOTICE = 5.0
"""Seconds between a failed collective and knowing whose fault it is."""


class Group:
    """The processes that train together, from one of them.

    ``mesh`` is over all their devices. The group stands until `finish`; a process that
    ends before takes the others with it (see `watch`).
    """

    def __init__(self, processes: Processes, mesh: Mesh, watch: Hub | Spoke) -> None:
        self.processes = processes
        self.mesh = mesh
        self._watch = watch

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.processes.process_id == 0

    def lost(self) -> str | None:
        """One line on the process that was lost, if one was."""
        return self._watch.lost

    def is_broken(self) -> bool:
        """Whether the failure of a collective comes from the loss of a process."""
        return self._watch.wait_for_loss(NOTICE)

    def from_first(self, tree: PyTree) -> Any:
        """The first process's ``tree``, replicated over the mesh; others give one of its shapes."""
        import jax
        from jax.experimental.multihost_utils import broadcast_one_to_all
        from jax.sharding import NamedSharding, PartitionSpec

        shared = broadcast_one_to_all(jax.device_get(tree))
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.make_array_from_callback(
                leaf.shape, everywhere, lambda index: leaf[index]
            ),
            jax.device_get(shared),
        )

    def finish(self) -> None:
        """Wait until every process has come to this point, and part."""
        global _unfinished
        self._watch.finish()
        _unfinished = False


_unfinished = False


def unfinished() -> bool:
    """Whether this process has joined a group and not finished with it.

    Its interpreter must then leave by `os._exit`, or it would wait for the others.
    """
    return _unfinished


def join(processes: Processes, devices: int | None, batch_size: int, components: int = 1) -> Group:
    """Meet the other processes; before JAX's first use in this one.

    ``devices``: of this process (None: all its accelerators, or one CPU device).
    ``components``: of the devices, how many share each problem (see `make_mesh`).
    Raises `UserError` when the processes do not meet, or have more devices than
    there are problems in a batch for.
    """
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    from optdyn.meta_training._components import make_mesh
    from optdyn.precision import use_exact_products

    global _unfinished
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", devices or 1)
    # Before version 0.8 JAX has a heartbeat of its own choice.
    known = inspect.signature(jax.distributed.initialize).parameters
    backstop: dict[str, Any] = {"heartbeat_timeout_seconds": BACKSTOP}
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.num_processes,
            processes.process_id,
            cluster_detection_method="deactivate",
            initialization_timeout=STARTING,
            **{name: value for name, value in backstop.items() if name in known},
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--coordinator: {processes.num_processes} processes did not meet at "
            f"{processes.coordinator} within {STARTING} s ({reason})"
        ) from None
    use_exact_products()
    _unfinished = True
    atexit.register(_leave)
    if devices is not None and devices > jax.local_device_count():
        raise UserError(
            f"--devices: {devices} is not allowed (at most {jax.local_device_count()} here)"
        )
    present = [
        device
        for index in range(processes.num_processes)
        for device in jax.local_devices(process_index=index)[:devices]
    ]
    mesh = make_mesh(present, components)
    if len(present) > batch_size * components:
        raise UserError(
            f"--batch-size: {batch_size} is not allowed (at least one problem for each "
            f"{components} of {len(present)} devices)"
        )
    if processes.process_id == 0:
        hub = Hub(processes.host, processes.num_processes)
        broadcast_one_to_all(np.array([hub.port, hub.token], np.int32))
        hub.accept()
        watch: Hub | Spoke = hub
    else:
        port, token = broadcast_one_to_all(np.zeros(2, np.int32)).tolist()
        watch = Spoke(processes.host, port, token, processes.process_id)
    return Group(processes, mesh, watch)


def _leave() -> None:
    """At the end of an interpreter that failed: do not wait for the others."""
    if _unfinished:
        os._exit(1)
