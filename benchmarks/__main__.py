"""Run the benchmarks: `python benchmarks [NAME ...]`, each in a process of its own, so that peak memory is its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem != "__main__"}
    parser = argparse.ArgumentParser(prog="python benchmarks", description="Run benchmarks: all of them, or the named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(scripts)}")
    names = parser.parse_args().names or list(scripts)
    unknown = [name for name in names if name not in scripts]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(scripts)}")
    failed = []
    for name in names:
        print(f"\n=== {name}", flush=True)
        if subprocess.run([sys.executable, str(scripts[name])], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
