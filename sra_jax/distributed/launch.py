"""Connects the processes of one run."""

import contextlib
import logging
import socket
import time

import jax

from sra_jax.core.errors import InputError

CONNECT_SECONDS = 120
HEARTBEAT_SECONDS = 30  # a process that is silent for longer counts as lost, and ends the others
SHUTDOWN_SECONDS = 24 * 3600  # finished processes wait this long for one that still writes
_log = logging.getLogger(__name__)


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of one run; must be called before anything uses a device.

    On TPU pods, GKE and SLURM, JAX finds the others by itself. Elsewhere the three arguments name
    them: `coordinator` is HOST:PORT of process 0. A single process needs neither.

    Raises:
      InputError: only some of the arguments are given, or the coordinator does not answer.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise InputError("give all of --coordinator=HOST:PORT, --num_processes and --process_id")
    if coordinator is not None:
        host, port = _host_and_port(coordinator)
        if not 0 <= process_id < num_processes:
            raise InputError(f"--process_id is {process_id}, expected 0 to {num_processes - 1}")
        if process_id > 0:
            _await_coordinator(host, port, process_id)
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if coordinator is not None:
            raise InputError(f"cannot start the processes: {error}") from None
        _log.debug("one process: %s", error)  # JAX found no cluster


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator is {address!r}, expected HOST:PORT of process 0")
    return host, int(port)


def _await_coordinator(host: str, port: int, process_id: int) -> None:
    """Returns when something listens there. JAX would abort the process if nothing did."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
            return
        time.sleep(0.5)
    raise InputError(
        f"process {process_id} got no answer from the coordinator {host}:{port} within "
        f"{CONNECT_SECONDS} s; start process 0 there, and check host and port"
    )
