"""Broken files are read or refused with an `InputError`: nothing else is raised, run, or written elsewhere.

Cases are drawn from seeds and run in forked processes that are killed when one takes too long. To repeat one:

    python -m tests.torture.fuzz --kind data --seed 17
"""

import argparse
import contextlib
import faulthandler
import io
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tutelage
from tests.tiny import arguments, mask_arguments
from tests.torture.fuzz_kinds import KINDS, gather
from tests.torture.fuzz_mutations import CANARY, copy_tree, mutate
from tutelage.data.demo import draw_scenes
from tutelage.types import InputError

LONGEST_MESSAGE = 20_000  # letters
LONGEST = 10.0  # seconds of one case
MEMORY = 1536 << 20  # bytes of addresses that a case may take beyond those of the process that has read whole files
STARTING = 60.0  # seconds that the first, whole file of a kind may take: libraries are loaded
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
Case = tuple[str, int]  # kind, seed


@dataclass(frozen=True)
class Failure:
    """What a case did that it must not."""

    case: Case
    what: str

    def __str__(self) -> str:
        return f"--kind {self.case[0]} --seed {self.case[1]}: {self.what}"


class Guard:
    """Notes what is executed, and what is written outside of a folder, while a file is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.active = False
        self.found: list[str] = []
        sys.addaudithook(self.audit)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if event in FORBIDDEN or (changes and not self._inside(args[0])):
            self.found.append(f"{event}{args!r}")

    def _inside(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a file that is open already
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder) or os.fsdecode(path) == os.devnull

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.found, self.active = [], True
        try:
            yield
        finally:
            self.active = False


def run_case(corpus: Path, folder: Path, case: Case, guard: Guard) -> tuple[str, str]:
    """What was broken in one case, and how it was read: read, refused, or what went wrong."""
    kind, seed = case
    rng = np.random.default_rng([abs(seed), list(KINDS).index(kind)])
    wholes = sorted((corpus / kind).iterdir())
    place = folder / "in"
    copy_tree(wholes[rng.integers(len(wholes))], place)
    files = sorted(path for path in place.rglob(KINDS[kind].broken) if path.is_file())
    files = files or sorted(
        path for given in place.glob(KINDS[kind].broken) for path in given.rglob("*") if path.is_file()
    )
    broken = files[rng.integers(len(files))]
    same = [path for path in files if path.suffix == broken.suffix and path != broken][:3]
    how = mutate(broken, same, rng) if seed >= 0 else "whole"
    return how, _outcome(kind, place, broken, rng, guard)


def _outcome(kind: str, place: Path, broken: Path, rng: np.random.Generator, guard: Guard) -> str:
    outcome = "read"
    with guard.watching(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            KINDS[kind].read(place, broken, rng)
        except InputError as error:
            outcome = (
                f"refused: {error}" if len(str(error)) < LONGEST_MESSAGE else f"{len(str(error))} letters: {error}"
            )
        except BaseException:  # whatever it is, it is what is looked for
            outcome = traceback.format_exc(limit=-6)
    if guard.found:
        return f"did {guard.found[:3]}"
    return "executed what stands in a file" if Path(CANARY).exists() else outcome


def work(corpus: Path, folder: Path, pipe: Connection) -> None:
    """A process that runs cases, one after the other, as they come."""
    torch.set_num_threads(1)
    faulthandler.enable()
    work_in = folder / "work"
    guard, known = Guard(folder), set[str]()
    while (case := pipe.recv()) is not None:
        if case[0] not in known:
            known.add(case[0])
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            _run_in(work_in, corpus, (case[0], -1), guard)
            _bound_memory()
        pipe.send(_run_in(work_in, corpus, case, guard))


def _run_in(folder: Path, corpus: Path, case: Case, guard: Guard) -> tuple[str, str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["TUTELAGE_CACHE"] = str(folder / "cache")
    return run_case(corpus, folder, case, guard)


def _bound_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))


class Worker:
    """A process, and the case it is at."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder
        self.known: set[str] = set()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(self.corpus, self.folder, other), daemon=True)
        self.process.start()
        other.close()
        self.known.clear()

    def give(self, case: Case) -> None:
        self.case = case
        self.deadline = time.monotonic() + (LONGEST if case[0] in self.known else STARTING)
        self.known.add(case[0])
        self.pipe.send(case)

    def answer(self) -> tuple[str, str]:
        """What became of the case; another process takes the place of one that died or hangs."""
        try:
            if self.pipe.poll():
                return self.pipe.recv()  # type: ignore[no-any-return]
            found = f"still running after {LONGEST:.0f} seconds"
            self.process.kill()
        except EOFError:
            self.process.join()
            found = f"its process died (exit code {self.process.exitcode})"
        self.process.kill()
        self.process.join()
        self.start()
        return "", found

    def end(self) -> None:
        self.pipe.send(None)
        self.process.join(5)
        self.process.kill()


def fuzz(corpus: Path, folder: Path, cases: Sequence[Case], processes: int = 1) -> tuple[dict[str, int], list[Failure]]:
    """How many cases were read and refused, by kind; and those that failed."""
    workers = [Worker(corpus, folder / f"worker-{number}") for number in range(processes)]
    left, busy = list(reversed(cases)), {}
    counts: dict[str, int] = {}
    failures = []
    for worker in workers[: len(left)]:
        worker.give(left.pop())
        busy[worker.pipe] = worker
    while busy:
        soonest = min(worker.deadline for worker in busy.values())
        ready = wait(list(busy), max(0.0, soonest - time.monotonic()))
        for pipe in [pipe for pipe, worker in busy.items() if pipe in ready or time.monotonic() > worker.deadline]:
            worker = busy.pop(pipe)
            how, outcome = worker.answer()
            state = outcome.partition(":")[0]
            if state not in ("read", "refused"):
                failures.append(Failure(worker.case, f"{how}\n{outcome}"))
                state = "failed"
            if len(cases) == 1:
                print(how, outcome, sep="\n")
            key = f"{worker.case[0]} {state}"
            counts[key] = counts.get(key, 0) + 1
            if left:
                worker.give(left.pop())
                busy[worker.pipe] = worker
    for worker in workers:
        worker.end()
    return dict(sorted(counts.items())), failures


def cases(number: int, first: int = 0) -> list[Case]:
    """About this many cases of all kinds, each kind by its share, one kind after the other."""
    return [
        (kind, first + seed)
        for kind, one in KINDS.items()
        for seed in range(max(1, round(one.share * number / 10_000)))
    ]


def own_corpus(folder: Path) -> Path:
    """Whole files made here, and those of `TUTELAGE_DATA`."""
    os.environ["TUTELAGE_CACHE"] = str(folder / "cache")
    scenes = folder / "scenes"
    for seed, (name, images) in enumerate({"labeled": 8, "pool": 20, "test": 24}.items()):
        draw_scenes(scenes / name, images=images, size=64, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        tutelage.fit(**arguments(scenes, folder / "boxes"))
        tutelage.fit(**mask_arguments(scenes, folder / "masks"))
    real = Path(os.environ.get("TUTELAGE_DATA", "../shared/data"))
    runs = {"boxes": folder / "boxes", "masks": folder / "masks"}
    return gather(folder / "corpus", scenes, runs, real.resolve() if real.is_dir() else None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="of one case")
    parser.add_argument("--seed", type=int, default=0, help="of one case; else the first of all")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", default="", help="a folder where the whole files stay, for the next start")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(given.keep or temporary).resolve()
        corpus = kept / "corpus" if (kept / "corpus").is_dir() else own_corpus(kept)
        chosen = [(given.kind, given.seed)] if given.kind else cases(given.cases, given.seed)
        counts, failures = fuzz(corpus, Path(temporary).resolve(), chosen, given.processes)
    print(*failures, sep="\n\n")
    print(counts, f"{len(failures)} of {len(chosen)} failed")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main())
