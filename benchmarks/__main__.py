"""Runs every bench_*.py of this folder in turn, or those named: `python -m benchmarks metrics index`."""

import importlib
import sys
import time
from pathlib import Path

PREFIX = "bench_"


def main(chosen: list[str]) -> int:
    names = sorted(path.stem.removeprefix(PREFIX) for path in Path(__file__).parent.glob(f"{PREFIX}*.py"))
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        print(f"benchmarks: unknown name {', '.join(unknown)}; choose from {', '.join(names)}.", file=sys.stderr)
        return 2
    for name in chosen or names:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{PREFIX}{name}").main()
        print(f"   ({time.perf_counter() - start:.0f} s)\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
