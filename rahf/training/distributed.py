"""Several processes as one run: joining, noticing that one is gone, and stopping at the same step.

`joined()` connects the processes, if there are several, by what the environment says:

* ``RAHF_COORDINATOR`` (host:port of process 0), ``RAHF_PROCESSES`` and ``RAHF_PROCESS_ID``;
* inside ``srun`` or ``mpirun`` with several tasks, and on TPU pods of GKE, what JAX reads from the environment itself;
* ``RAHF_DISTRIBUTED=auto`` asks JAX to look on any machine (TPU pods of Compute Engine), ``off`` never does.

A run is one program: when one process dies the others cannot go on, and most collective operations would wait for it
forever. So every process reports to the others that it is alive, and ends with a
message when one of them stops reporting.

None of these connections is authenticated or encrypted. A coordinator with a name or address of the loopback interface
is reachable from this machine only; every other one needs a network that is trusted (docs/clusters.md).
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from rahf.core import names, process
from rahf.core.errors import TrainError

_EXPLICIT = ("RAHF_COORDINATOR", "RAHF_PROCESSES", "RAHF_PROCESS_ID")
#: Variables by which a launcher says how many processes there are, when it starts them.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_SILENCE = 60.0  # seconds without a sign of life after which a process counts as dead
_GOODBYE = 20  # seconds that leaving may take after a failure
_PATIENCE_MS = 600_000  # how long to wait for process 0
_WATCHES: list[_Watch] = []  # of this process: at most one
_COUNTER = itertools.count()  # all processes make the same calls, so the same number names the same call
T = TypeVar("T")


def initialize_arguments(environment: Mapping[str, str]) -> dict[str, object] | None:
    """Arguments for `jax.distributed.initialize` by the environment; None: the run has this process only.

    Raises:
      TrainError: the variables contradict each other or are no numbers.
    """
    mode = environment.get("RAHF_DISTRIBUTED", "")
    if mode not in ("", "auto", "off"):
        raise TrainError(f"RAHF_DISTRIBUTED: expected auto or off, found {mode!r}")
    names = [name for name in _EXPLICIT if environment.get(name)]
    if mode == "off":
        return None
    if names:
        return _explicit(environment, names)
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    launched = any(environment.get(name, "1") not in ("", "1") for name in _TASKS)
    return {} if mode == "auto" or pod or launched else None


def _explicit(environment: Mapping[str, str], names: list[str]) -> dict[str, object] | None:
    if len(names) < len(_EXPLICIT):
        missing = ", ".join(sorted(set(_EXPLICIT) - set(names)))
        raise TrainError(f"{' and '.join(names)} given without {missing}; several processes need all three")
    address, *numbers = (environment[name] for name in _EXPLICIT)
    try:
        processes, process = map(int, numbers)
    except ValueError as error:
        raise TrainError(f"RAHF_PROCESSES={numbers[0]} RAHF_PROCESS_ID={numbers[1]}: expected numbers") from error
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TrainError(f"RAHF_COORDINATOR: expected host:port of process 0, found {address!r}")
    if not 0 <= process < processes:
        raise TrainError(f"RAHF_PROCESS_ID={process}: expected 0 to {processes - 1}, as RAHF_PROCESSES={processes}")
    if processes == 1:
        return None
    arguments = {"coordinator_address": address, "num_processes": processes, "process_id": process}
    if _is_loopback(host):
        arguments["coordinator_bind_address"] = address  # JAX's default listens on every interface
    return arguments


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name alone.

    Other names are not resolved: Debian resolves a machine's own name to 127.0.1.1, other machines do not.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Connects this process with the others of the run, if there are any; leaves together with them.

    A process that is alone computes in its main thread where that is faster (`rahf.core.process`). One of several does
    not: computed there, an operation over all processes that fails raises ValueError, as bad input does.

    Raises:
      TrainError: the others do not come, or one has gone.
    """
    arguments = initialize_arguments(environment)
    if arguments is None:
        process.dispatch_in_line()
        yield
        return
    _connect(arguments, float(environment.get("RAHF_JOIN_SECONDS", "300")))
    watch = _Watch(float(environment.get("RAHF_SILENCE_SECONDS", _SILENCE)))
    _WATCHES.append(watch)
    try:
        yield
    except BaseException as error:
        watch.failed(error)
        raise
    finally:
        _WATCHES.remove(watch)
    watch.stop()
    import jax

    jax.distributed.shutdown()  # waits for the others


def _connect(arguments: dict[str, object], patience: float) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if "coordinator_bind_address" in arguments:
        _collect_on_loopback()
    where = "process {process_id} of {num_processes}, coordinator {coordinator_address}".format_map(arguments) \
        if arguments else "as found by JAX from the environment"  # fmt: skip
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=int(patience))
    except Exception as error:
        raise TrainError(
            f"cannot join the processes of the run ({where}) within {patience:.0f} s: {error}\n"
            "Start all processes at about the same time with the same RAHF_COORDINATOR, which must be reachable; "
            "or set RAHF_DISTRIBUTED=off to train in this process alone."
        ) from error


def _collect_on_loopback() -> None:
    """Makes Gloo, which exchanges arrays between CPU processes, listen on the loopback interface.

    By default it listens on the address of the machine's own name. JAX passes no other on.
    """
    from jax._src.lib import _jax

    _jax.make_gloo_tcp_collectives = functools.partial(_jax.make_gloo_tcp_collectives, hostname="localhost")


def report_failure(error: BaseException) -> None:
    """Reports to the other processes that this one fails, before it closes resources that they may be waiting for."""
    for watch in _WATCHES:
        watch.failed(error)


def _client() -> Any:
    from jax._src import distributed as jax_distributed  # its key-value store has no public name

    return jax_distributed.global_state.client


class _Watch:
    """Reports that this process is alive, and checks the reports of the others, in a thread of its own.

    Process 0 checks all; the others check process 0, without which nobody can go on.
    """

    def __init__(self, silence: float):
        import jax

        self._client = _client()
        self._process, self._processes = jax.process_index(), jax.process_count()
        self._silence = silence
        self._others = range(1, self._processes) if self._process == 0 else [0]
        self._heard = dict.fromkeys(self._others, ("", time.monotonic()))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="rahf-watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch: this process has finished its part of the run."""
        self._say("left")
        self._stopped.set()
        self._thread.join(self._silence)

    def failed(self, error: BaseException) -> None:
        """Reports to the others that this process fails, and ends it soon, whatever it still waits for."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        with contextlib.suppress(Exception):
            self._say(f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        import jax

        if isinstance(error, jax.errors.JaxRuntimeError):  # a collective operation notices before the watch does
            self._explain("what runs over all processes has failed, most likely because one of them has gone")
        threading.Thread(target=_end_soon, daemon=True).start()

    def _say(self, what: str) -> None:
        self._client.key_value_set(f"rahf/alive/{self._process}", what, allow_overwrite=True)

    def _run(self) -> None:
        beat, pause = 0, min(self._silence / 6, 5.0)
        while not self._stopped.wait(pause):
            beat += 1
            try:
                self._say(f"beat {beat}")
                reports = dict(self._client.key_value_dir_get("rahf/alive"))
            except Exception:  # noqa: BLE001 - the service is part of process 0
                if not self._stopped.is_set():
                    self._end("process 0 of the run, which coordinates it, cannot be reached any more")
                return
            if (gone := self._gone({int(k.rsplit("/", 1)[-1]): v for k, v in reports.items()})) is not None:
                self._end(gone)

    def _gone(self, reports: dict[int, str]) -> str | None:
        now = time.monotonic()
        for other in self._others:
            last, when = self._heard[other]
            report = reports.get(other, "")
            if report != last:
                self._heard[other] = (report, now)
            if report.startswith("failed"):
                return f"process {other} of {self._processes} {report}"
            if report == last and report != "left" and now - when > self._silence:
                return f"process {other} of {self._processes} has given no sign of life for {self._silence:.0f} s"
        return None

    def _end(self, why: str) -> None:
        self._explain(why)
        os._exit(1)

    def _explain(self, why: str) -> None:
        print(
            f"rahf: {names.one_line(why)}; process {self._process} ends too. Start all processes again: the run goes "
            "on from its last checkpoint.",
            file=sys.stderr,
            flush=True,
        )


def _end_soon() -> None:
    time.sleep(_GOODBYE)
    os._exit(1)


def first_then_others(what: str, act: Callable[[], T]) -> T:
    """Lets process 0 act alone and then all others; what `act` returns in this process.

    Raises:
      TrainError: process 0 has failed; in all other processes, with its message.
    """
    import jax

    if jax.process_count() == 1:
        return act()
    client, key = _client(), f"rahf/{what}/{next(_COUNTER)}"
    if jax.process_index() != 0:
        outcome = client.blocking_key_value_get(key, _PATIENCE_MS)
        if outcome != "done":
            raise TrainError(f"process 0: {outcome}")
        return act()
    try:
        result = act()
    except Exception as error:
        client.key_value_set(key, str(error) or type(error).__name__)
        raise
    client.key_value_set(key, "done")
    return result


def of_first(what: str, text: str) -> str:
    """The text that process 0 gives; the others wait for it."""
    import jax

    if jax.process_count() == 1:
        return text
    client, key = _client(), f"rahf/{what}/{next(_COUNTER)}"
    if jax.process_index() != 0:
        return client.blocking_key_value_get(key, _PATIENCE_MS)
    client.key_value_set(key, text)
    return text


def reached_stop(step: int, signal_seen: bool) -> bool:
    """Whether the run is to be saved and stopped after `step`, at which all processes agree.

    A single process stops when it has seen a signal. Several learn of a preemption notice (SIGTERM) that any of them
    was given through the coordination service, which finds the next step that none of them has begun.
    """
    import jax

    if jax.process_count() == 1:
        return signal_seen
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
