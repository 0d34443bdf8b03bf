"""Fills every GPU row of docs/benchmarks.md in one go of a few minutes, without anybody looking.

    make gpu                                     # on a machine with a GPU; without one the same path, in tiny sizes
    python benchmarks/gpu.py --device-check      # only: what is this machine, does everything import
    python benchmarks/gpu.py --only train_full train_quarter --budget 300

Runs the measurements in the order of their worth, each in a process of its own with a time limit. As many as the
device's memory holds are there at the same time: they import and compile beside each other, and each is timed alone
(`turns`), after the last of them has compiled. As soon as one has ended, its line is in OUT/gpu.jsonl and the tables in
OUT/gpu.md: a run that is cut off keeps what it has. A failure is a line, too, and the run goes on. Called again, it
measures what is still missing. This program does not import JAX: it would take the GPU's memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gpu_table
import turns

BENCHMARKS = pathlib.Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
#: Of the device's memory; the rest is the driver's and that of each program's context.
_USABLE = 0.93
#: Cores that a program compiles with, about.
_CORES = 3


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the measurements are: for a GPU of 80 GB, or to try the whole path on a CPU."""

    preset: str
    batch: int
    eager_batch: int  # PyTorch in float32 takes 52.6 GiB at 8
    check_batch: int
    rounds: int
    seconds: float  # of a round
    decoder: str
    tokens: int
    overlap_preset: str
    overlap_seconds: int
    overlap: tuple[str, ...] = ()  # fields of the config
    precision: tuple[str, ...] = ()
    small_card: tuple[str, ...] = ()
    rehearsal: tuple[str, ...] = ()


ON_GPU = Sizes(
    "vitl", 32, 8, 4, 3, 2.0, "base", 64, "fast", 60,
    # A heatmap head's sums still run over 37,000 positions an example. All of it at 384 pixels took more than 200 s:
    # XLA tries every kernel for each convolution in float32.
    precision=(
        *("--model.vit.depth", "4", "--model.t5.encoder-layers", "2", "--model.t5.decoder-layers", "2"),
        *("--model.image-size", "192"),
    ),
)  # fmt: skip
ON_CPU = Sizes(
    "tiny", 4, 2, 2, 1, 0.1, "small", 8, "tiny", 3, overlap=("--train.log-every", "2"),
    precision=("--model.vit.depth", "1", "--model.t5.encoder-layers", "1", "--model.t5.decoder-layers", "1"),
    # Convolutions inside a loop are slow where nothing is optimised: 23 s a step at 64 x 64 pixels.
    small_card=("--model.image-size", "32"),
    rehearsal=("--steps", "2", "--limit", "8"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the results: a program of this folder with its arguments, and how long it may take."""

    name: str
    command: tuple[str, ...]
    limit: int  # seconds, those not counted in which it waits for its turn
    least: int = 15  # with less time left it is not begun
    torch: bool = False  # needs PyTorch
    data: bool = False  # needs a prepared dataset
    turn: Literal["own", "shared", "alone"] = "alone"  # takes its turns itself, times nothing, must have the machine
    memory: float = 0.0  # GiB on the device; 0: all of it, and nothing beside it
    gib: float | None = None  # a limit that belongs to the measurement
    environment: tuple[tuple[str, str], ...] = ()


def measurements(sizes: Sizes, data: str, out: pathlib.Path) -> list[Measurement]:
    """All of them, the most valuable first."""
    clock = ("--rounds", str(sizes.rounds), "--seconds", str(sizes.seconds))
    network = ("--preset", sizes.preset, *clock)
    large, check = ("--batch", str(sizes.batch)), ("--preset", sizes.preset, "--batch", str(sizes.check_batch))
    peer = ("torch_peer.py", *network, "--variant")
    small_card = (
        *("train_step.py", *network, "--batch", "4", "--train.accumulate", "4", "--model.remat", "full"),
        *("--model.scan-layers", *sizes.small_card),
    )
    lora = ("--optimizer.lora.rank", "16", "--optimizer.trainable", "heatmap_*", "score_*")
    quarter, parts = ("--model.heatmap-head.kind", "quarter"), ("--train.accumulate", "2")
    overlap = ("--preset", sizes.overlap_preset, *large, "--seconds", str(sizes.overlap_seconds), *sizes.overlap)
    return [
        Measurement("device", ("gpu_limits.py", "--device"), 90, turn="shared", memory=4),
        Measurement("check_attention", ("gpu_checks.py", "attention", *check), 120, turn="shared", memory=12),
        Measurement(
            "check_precision",
            ("gpu_checks.py", "precision", *check, *sizes.precision),
            200, 40, turn="shared", memory=24,
        ),
        Measurement("check_export", ("gpu_checks.py", "export"), 150, 30, turn="shared", memory=4),
        Measurement("limits", ("gpu_limits.py",), 90),
        Measurement(
            "train_full",
            ("train_step.py", *network, *large, "--trace", str(out / "trace_full")),
            300, 60, turn="own", memory=64,
        ),
        Measurement("train_parts", ("train_step.py", *network, *large, *parts), 300, 60, turn="own", memory=44),
        Measurement("inference_all", ("inference.py", *network, *large), 200, 40, turn="own", memory=16),
        Measurement(
            "inference_scores", ("inference.py", *network, *large, "--mode", "scores"), 200, 30, turn="own", memory=16
        ),
        Measurement("torch_tuned", (*peer, "tuned", *large), 300, 60, torch=True, turn="own", memory=96),
        Measurement("torch_eager", (*peer, "eager", "--batch", str(sizes.eager_batch)), 200, 30, torch=True),
        Measurement(
            "train_quarter",
            ("train_step.py", *network, *large, *quarter, "--trace", str(out / "trace_quarter")),
            300, 60, turn="own", memory=34,
        ),
        Measurement(
            "torch_inference_all", (*peer, "tuned", *large, "--work", "all"), 200, 40, torch=True, turn="own", memory=20
        ),
        Measurement(
            "torch_inference_scores",
            (*peer, "tuned", *large, "--work", "scores"),
            200, 40, torch=True, turn="own", memory=20,
        ),
        Measurement("memory16_lora", (*small_card, *lora), 200, 50, turn="own", memory=16, gib=16),
        Measurement(
            "memory16_adafactor",
            (*small_card, "--optimizer.kind", "adafactor"),
            200, 50, turn="own", memory=16, gib=16,
        ),
        Measurement("check_upsampling", ("gpu_checks.py", "upsampling", *check), 120),
        Measurement(
            "decode", ("decode.py", "--size", sizes.decoder, "--tokens", str(sizes.tokens), "--repeats", "3"), 90, 30
        ),
        Measurement("overlap", ("gpu_training.py", "overlap", "--data", data, *overlap), 200, 60, data=True),
        Measurement(
            "rehearsal",
            ("gpu_training.py", "rehearsal", "--data", data, "--workdir", str(out / "rehearsal"), *sizes.rehearsal),
            600, 60, data=True,
        ),
    ]  # fmt: skip


def nvidia() -> dict[str, Any] | None:
    """Name, memory in MiB and driver of the first NVIDIA GPU; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    fields = [field.strip() for field in answer.stdout.partition("\n")[0].split(",")]
    if answer.returncode or len(fields) != 3:
        return None
    return {"gpu": fields[0], "memory_mib": int(fields[1]), "driver": fields[2]}


def install(pack: pathlib.Path, site: pathlib.Path) -> None:
    """Unpacks the wheels of benchmarks/gpu_pack.py into `site`, without a network and without touching the machine."""
    wheels = sorted(str(wheel) for wheel in (pack / "wheels").glob("*.whl"))
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--upgrade", "--target", str(site), *wheels], check=True)


class Run:
    """Measures one after the other; writes lines and tables."""

    def __init__(self, out: pathlib.Path, budget: float, gpu: dict[str, Any] | None, site: pathlib.Path):
        self.out, self.gpu, self.site = out, gpu, site
        self.end = time.monotonic() + budget
        self.file = out / "gpu.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        self._writing = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def measure(self, measurement: Measurement, program: Sequence[str] | None = None) -> str:
        """Runs one measurement and writes its line; returns its status: ok, error, timeout or skipped."""
        left = self.end - time.monotonic()
        line: dict[str, Any] = {"measurement": measurement.name, "time": _now()}
        if self._stopped:
            return "interrupted"
        if left < measurement.least:
            line |= {
                "status": "skipped",
                "error": f"{max(left, 0):.0f} s of the budget left, it takes {measurement.least}",
            }
        elif measurement.torch and importlib.util.find_spec("torch") is None:
            line |= {"status": "skipped", "error": "PyTorch is not installed"}
        else:
            line |= self._run(measurement, program, min(measurement.limit, left))
            if self._stopped:
                line |= {"status": "interrupted", "error": "the run was ended from outside"}
        self.write(line)
        return line["status"]

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, on disk before this returns, and makes the tables anew."""
        with self._writing:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            (self.out / "gpu.md").write_text(gpu_table.tables(gpu_table.read(self.file)))

    def stop(self) -> None:
        """Ends what is running, and begins nothing more."""
        self._stopped = True
        for process in tuple(self._running):
            _kill(process)

    def _run(self, measurement: Measurement, program: Sequence[str] | None, limit: float) -> dict[str, Any]:
        script, *arguments = measurement.command
        begins = [*program, script] if program else [sys.executable, str(BENCHMARKS / script)]
        if measurement.name == "rehearsal":  # its training is to end in time for its evaluation
            arguments += ["--seconds", str(int(limit * 0.6))]
        if measurement.turn != "own":
            begins = [sys.executable, str(BENCHMARKS / "turns.py"), measurement.turn, *begins]
        command = [*begins, *arguments]
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            status, code = self._wait(command, self._environment(measurement), stdout, stderr, limit)
            for file in (stdout, stderr):
                file.seek(0)
            result, log = _last_json(stdout.read()), stderr.read()
        with self._writing, (self.out / "log.txt").open("a") as file:
            file.write(f"\n== {measurement.name}: {' '.join(command)}\n{log}")
        line: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
        if measurement.gib and self.gpu:
            line["memory_limit_gib"] = measurement.gib
        if result is not None:
            line["result"] = result
        end = log.strip()[-1500:]
        if status == "ok" and code:
            line |= {"status": "error", "error": f"exit code {code}: {end}"}
        elif status == "ok" and (result is None or "error" in result):
            reason = "it printed no result" if result is None else str(result["error"])
            line |= {"status": "error", "error": reason}
        elif status == "timeout":
            line["error"] = f"stopped after {line['seconds']:.0f} s: {end}"
        return line

    def _environment(self, measurement: Measurement) -> dict[str, str]:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        paths = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "rahf_gpu_cache"))
        if not self.gpu:
            environment["JAX_PLATFORMS"] = "cpu"
            # What counts here is that everything runs: nearly all of the time would go into optimising programs.
            environment.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
            if tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2]) < (0, 11):
                flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
                environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
            environment.setdefault("TORCHDYNAMO_DISABLE", "1")  # torch.compile calls a C++ compiler for each kernel
        environment[turns.VARIABLE] = str(self.out / ".turns")
        if measurement.turn == "shared" and self.gpu:  # nothing is timed: trying kernels out would take minutes
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
        if measurement.memory and self.gpu:
            fraction = measurement.memory * 1024 / self.gpu["memory_mib"]
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{min(fraction, _USABLE):.4f}"
        return environment | dict(measurement.environment)

    def _wait(self, command, environment, stdout, stderr, limit) -> tuple[str, int]:
        """Waits for a process and whatever it starts; ends all of them after `limit` seconds, or with the budget.

        Seconds in which it waits for its turn do not count.
        """
        process = subprocess.Popen(
            command, env=environment, stdout=stdout, stderr=stderr, cwd=ROOT, start_new_session=True, text=True
        )
        self._running.add(process)
        if self._stopped:  # meanwhile
            _kill(process)
        seconds, before = 0.0, time.monotonic()
        try:
            while True:
                try:
                    return "ok", process.wait(min(0.5, max(limit - seconds, 0.01)))
                except subprocess.TimeoutExpired:
                    now = time.monotonic()
                    if not turns.waiting(environment[turns.VARIABLE], process.pid):
                        seconds += now - before
                    before = now
                if seconds >= limit or now >= self.end:
                    return "timeout", -1
        finally:
            _kill(process)
            process.wait()
            self._running.discard(process)


def side_by_side(
    todo: Sequence[Measurement],
    work: Callable[[Measurement], None],
    memory: float,
    at_once: int,
    stop: Callable[[], None],
) -> None:
    """Calls `work` for each measurement in a thread of its own, in their order, as many at once as there is room for.

    Args:
      todo: what to measure; the next one is not begun before the one in front of it.
      work: measures one.
      memory: GiB of the device for all that are there at once; 0: not counted.
      at_once: how many at most.
      stop: ends what is running, if this is interrupted; the interruption goes on after it.
    """
    changed, running = threading.Condition(), dict[threading.Thread, float]()

    def need(measurement: Measurement) -> float:
        return min(measurement.memory, memory) if measurement.memory else memory

    def room(measurement: Measurement) -> bool:
        alone = not (measurement.memory or measurement.turn == "own")
        return not running or (
            len(running) < at_once and not alone and sum(running.values()) + need(measurement) <= memory + 1e-6
        )

    def one(measurement: Measurement) -> None:
        try:
            work(measurement)
        finally:
            with changed:
                del running[threading.current_thread()]
                changed.notify_all()

    try:
        for measurement in todo:
            with changed:
                while not room(measurement):
                    changed.wait()
                thread = threading.Thread(target=one, args=(measurement,))
                running[thread] = need(measurement)
            thread.start()
    except BaseException:  # the whole run is being ended: say so in the lines of what is running
        stop()
        raise
    finally:
        try:
            with changed:
                changed.wait_for(lambda: not running)
        except BaseException:
            stop()
            with changed:
                changed.wait_for(lambda: not running)
            raise


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _last_json(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a process and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/gpu", metavar="DIR", help="where lines, tables, traces and the log go")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="only these measurements, in this order")
    parser.add_argument(
        "--budget", type=float, default=540, metavar="SECONDS", help="time for everything (default: 540)"
    )
    parser.add_argument("--device-check", action="store_true", help="only look at the machine")
    parser.add_argument("--again", action="store_true", help="measure also what OUT/gpu.jsonl has already")
    parser.add_argument(
        "--data", default="", metavar="DIR", help="prepared dataset (default: the pack's, else drawn scenes)"
    )
    parser.add_argument(
        "--pack", default="gpu_pack", metavar="DIR", help="made by benchmarks/gpu_pack.py; may be missing"
    )
    return parser


def prepare_data(run: Run, data: pathlib.Path) -> str:
    """Draws scenes for the measurements that need data, where there is none."""
    counts = ("--train", "2000", "--dev", "64", "--test", "64", "--size", "336") if run.gpu else (
        *("--train", "24", "--dev", "4", "--test", "8", "--size", "64"),
    )  # fmt: skip
    drawing = Measurement("data", ("prepare", "synthetic", "--out", str(data), *counts), 120, 20)
    code = "import sys; from rahf.cli.main import main; print('{}'); sys.exit(main(sys.argv[1:]))"
    return run.measure(drawing, [sys.executable, "-c", code])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns 0 if nothing that was begun failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running measurement is ended, too
    args = arguments().parse_args(argv)
    gpu, out, pack = nvidia(), pathlib.Path(args.out).resolve(), pathlib.Path(args.pack).resolve()
    site = pathlib.Path(tempfile.gettempdir()) / f"rahf_gpu_site_{os.getuid()}"
    data = pathlib.Path(args.data or (pack / "data" if (pack / "data").is_dir() else out / "data")).resolve()
    run = Run(out, args.budget, gpu, site)
    if (pack / "wheels").is_dir():
        install(pack, site)
    every = measurements(ON_GPU if gpu else ON_CPU, str(data), out)
    names = [measurement.name for measurement in every]
    if unknown := sorted(set(args.only) - set(names)):
        print(f"--only {' '.join(unknown)}: no such measurement; there are {', '.join(names)}", file=sys.stderr)
        return 2
    wanted = ["device"] if args.device_check else args.only or names
    order = lambda m: args.only.index(m.name) if m.name in args.only else 0  # noqa: E731
    done = set() if args.again else gpu_table.succeeded(gpu_table.read(run.file))
    about = {**(gpu or {"gpu": None}), "python": platform.python_version(), "budget": args.budget, "only": wanted}
    run.write({"measurement": "run", "time": _now(), "status": "ok", "result": about})
    failed: list[str] = []

    def work(measurement: Measurement) -> None:
        if measurement.data and not data.is_dir() and prepare_data(run, data) != "ok":
            failed.append("data")
        begin = time.monotonic()
        status = run.measure(measurement)
        print(f"{measurement.name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)
        if status in ("error", "timeout"):
            failed.append(measurement.name)

    todo = [m for m in sorted(every, key=order) if m.name in wanted and m.name not in done]
    memory = _USABLE * gpu["memory_mib"] / 1024 if gpu else 0.0
    side_by_side(todo, work, memory, max(2, (os.cpu_count() or 1) // _CORES), run.stop)
    if args.device_check:
        print(json.dumps(gpu_table.read(run.file).get("device"), indent=1))
    else:
        print((out / "gpu.md").read_text())
    print(f"{out}: {'all went well' if not failed else 'failed: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
