"""`make bench`: this service and its peers, side by side, on one machine.

In each round each server is started, measured and stopped, in a different order each round, so that a disturbance of
the machine affects all alike. The first round measures all of them; the later ones measure this service and the best
peers of the first. Results are saved at once: after an interruption a new run resumes. docs/performance.md has the
details.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil

from benchmarks.answers import expected_answers
from benchmarks.environments import REQUIREMENTS, CannotInstall, python_of
from benchmarks.figures import MAIN_LEVEL
from benchmarks.large import make_large
from benchmarks.limit import Limit, mean_limit
from benchmarks.material import Material, make_material
from benchmarks.network import Kind
from benchmarks.processes import ServerProcess, adopt_orphans
from benchmarks.report import write_report
from benchmarks.results import Machine, Plan, Run, Visit, read_run
from benchmarks.schedule import LARGE_MAIN, LEVELS, MAIN, NOOP_PEERS, SHARES, SUBJECTS, servers_of, steps_of
from benchmarks.servers import PEERS, REPOSITORY, Arrangement, models_of
from benchmarks.visit import DEADLINE_S, visit
from service.settings import usable_cores

QUICK_PEERS = ("fastapi", "litserve", "mosec")
QUICK_SUBJECTS = ("classify", "tasks", "noop")
LIMIT_S = 600
MAX_ROUNDS = 20
MAX_SECONDS = 60.0
MAX_MINUTES = 600


def main() -> None:
    arguments = _arguments()
    folder: Path = arguments.folder.resolve()
    plan = _plan(arguments)
    out: Path = arguments.out or (folder / "quick" if arguments.quick else REPOSITORY / "docs")
    # SIGINT and SIGTERM both end the server as well; a background job would ignore SIGINT.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    adopt_orphans()
    if arguments.fresh:
        shutil.rmtree(folder / "material", ignore_errors=True)
    material = make_material(folder / "material", arguments.pictures)
    print(f"the fastest precision here: {material.fastest_precision()}")
    state = folder / ("quick.json" if arguments.quick else "run.json")
    run = _resumed(state, plan, fresh=arguments.fresh) or _begun(plan, material)
    _prepare(run, material)
    _install(run, folder)
    try:
        _rounds(run, material, folder, state, arguments.minutes * 60)
    except KeyboardInterrupt:
        print("interrupted; run it again to resume")
        sys.exit(130)
    results = out / "performance.json"
    run.write(results)
    state.unlink()
    print(write_report(run, out))
    print(f"written to {out}")


def _rounds(run: Run, material: Material, folder: Path, state: Path, longest_s: float) -> None:
    """All rounds, except those that would not end in time if they took as long as the one before."""
    began_s = round_began_s = time.monotonic()
    for number in range(run.plan.rounds):
        now_s = time.monotonic()
        if number and (now_s - began_s) + (now_s - round_began_s) > longest_s:
            print(f"no time for more than {number} rounds")
            return
        round_began_s = now_s
        _round(run, number, material, folder, state)


def _round(run: Run, number: int, material: Material, folder: Path, state: Path) -> None:
    """The rest of one round."""
    done = {one.who for one in run.visits if one.round == number}
    servers = list(servers_of(run, number))
    turn = number % max(1, len(servers))
    for at, server in enumerate(servers[turn:] + servers[:turn]):
        if server.who in done or server.who.server in run.unavailable:
            continue
        print(f"round {number + 1}, {at + 1} of {len(servers)}: {server.who}", end=" ", flush=True)
        # A machine's speed changes within minutes: the limit is valid only right beside the measurement.
        limited = {MAIN: [], LARGE_MAIN: ["--large"]}.get(server.who)
        before = None if limited is None else _limit(material, folder, limited)
        one = visit(server, list(steps_of(run, server, number)), number, material, folder)
        if before and limited is not None:
            run.add_limit(number, mean_limit(before, _limit(material, folder, limited)))
        print(_summary(one), flush=True)
        run.visits.append(one)
        run.write(state)


def _limit(material: Material, folder: Path, flags: Sequence[str]) -> Limit:
    """The limit of the networks and decoding alone, measured in a process of its own, like servers."""
    command = [sys.executable, "-m", "benchmarks.limit", str(material.folder.resolve()), *flags]
    log = folder / "logs" / "limit.log"
    process = ServerProcess(command, {"PYTHONPATH": str(REPOSITORY)}, log, REPOSITORY)
    try:
        process.wait(LIMIT_S)
    finally:
        process.stop()
    try:
        return msgspec.json.decode(log.read_bytes().splitlines()[-1], type=Limit)
    except (IndexError, msgspec.DecodeError):
        raise SystemExit(f"the networks alone could not be measured; see {log}") from None


def _prepare(run: Run, material: Material) -> None:
    """The steps that take long and run only once."""
    if "large" in run.plan.subjects:
        make_large(material)
    for server in servers_of(run, 0):
        if server.who in (MAIN, LARGE_MAIN):
            for task, model in models_of(server.who).items():
                if task != "classify":
                    expected_answers(model, material)


def _install(run: Run, folder: Path) -> None:
    for name in dict.fromkeys((*run.plan.peers, *(NOOP_PEERS if "noop" in run.plan.subjects else ()))):
        if name in run.unavailable:
            continue
        try:
            python_of(name, folder)
        except CannotInstall as error:
            run.unavailable[name] = str(error)
            print(error)


def _summary(one: Visit) -> str:
    rates = [f"{load.task} {load.loop} {load.level:g}: {load.answers:.1f}/s" for load in one.loads]
    troubles = [one.trouble] if one.trouble else []
    troubles += [f"{times} x {kind}" for load in one.loads for kind, times in load.failed.items()]
    busy = max((load.foreign_cores for load in one.loads), default=0.0)
    disturbed = [f"others used {busy:.1f} cores"] * (busy > 0.15)
    return "; ".join([f"ready after {one.ready_s:.0f} s", *rates, *troubles, *disturbed])


def _begun(plan: Plan, material: Material) -> Run:
    sizes = [len(data) for data in material.pictures()]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    pins = {name: _pin(name) for name in plan.peers}
    mean = round(sum(sizes) / len(sizes))
    return Run(plan, _machine(), now, mean, DEADLINE_S * 1000, versions=pins)


def _pin(name: str) -> str:
    path = REQUIREMENTS / f"{name}.txt"
    if not path.exists():
        return f"{name} {version(name)}"
    return path.read_text(encoding="utf-8").splitlines()[0].replace("==", " ")


def _resumed(state: Path, plan: Plan, *, fresh: bool) -> Run | None:
    if fresh or not state.exists():
        return None
    run = read_run(state)
    if run.plan != plan:
        print("another run was interrupted; starting again")
        return None
    print(f"resuming the run of {run.started}: {len(run.visits)} visits are done")
    return run


def _machine() -> Machine:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    processor = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), ""
    )
    return Machine(
        processor=processor or platform.machine(),
        cores=usable_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=version("torch"),
    )


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    peers = arguments.peers.split(",") if arguments.peers else list(QUICK_PEERS if quick else PEERS)
    subjects = arguments.only.split(",") if arguments.only else list(QUICK_SUBJECTS if quick else SUBJECTS)
    for given, known in ((peers, PEERS), (subjects, SUBJECTS)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return Plan(
        rounds=arguments.rounds or (1 if quick else 3),
        seconds=arguments.seconds or (2.0 if quick else 3.0),
        peers=peers,
        networks=[Kind.FASTEST, Kind.EAGER] if quick else [Kind.FASTEST, Kind.EAGER, Kind.FP32],
        arrangements=[Arrangement.TUNED] if quick else list(Arrangement),
        levels=[1, MAIN_LEVEL] if quick else list(LEVELS),
        shares=[0.8, 1.2] if quick else list(SHARES),
        subjects=subjects,
        pictures=str(arguments.pictures.resolve()) if arguments.pictures else "",
    )


def within(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not least <= (value := kind(text)) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some minutes; docs/performance.md does not change")
    parser.add_argument("--only", help=f"of {','.join(SUBJECTS)}")
    parser.add_argument("--peers", help=f"of {','.join(PEERS)}")
    parser.add_argument("--rounds", type=within(int, 1, MAX_ROUNDS))
    parser.add_argument("--minutes", type=within(float, 0, MAX_MINUTES), default=25, help="for all rounds together")
    parser.add_argument("--seconds", type=within(float, 0.5, MAX_SECONDS), help="of each measurement")
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files (default: made from the project's own)")
    parser.add_argument(
        "--fresh", action="store_true", help="start again: pictures, model, choice of precision, results"
    )
    parser.add_argument("--out", type=Path, help="folder for tables, plots and results (default: docs)")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / ".bench", help="of environments, logs, material")
    return parser.parse_args()


if __name__ == "__main__":
    main()
