"""The name under which the benchmark was first called; it stands beside the package now: ``python -m benchmarks``."""

import importlib.util
import runpy
import sys


def main() -> int:
    """Run it, in a checkout of the sources; 2 where there is none."""
    if importlib.util.find_spec("benchmarks") is None:
        print("error: the benchmark is not in the installed package: run it in a checkout.", file=sys.stderr)
        return 2
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
