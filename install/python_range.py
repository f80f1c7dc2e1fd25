"""Which Pythons the tests were run with. Any Python can run this file, also one that is too old for the others here.

    python install/python_range.py

ends in one sentence and exit code 2 if the Python is too old.
"""

import sys

TESTED = ("3.10", "3.11", "3.12", "3.13")
TEXT = TESTED[0] + " to " + TESTED[-1]


def parse(version):  # type: (str) -> tuple[int, ...]
    """Makes "3.10" (3, 10)."""
    return tuple(map(int, version.split(".")))


def find_problem():  # type: () -> str | None
    """Returns why this Python cannot be used, as a sentence, or None."""
    if sys.version_info[:2] >= parse(TESTED[0]):
        return None
    version = ".".join(map(str, sys.version_info[:3]))
    return "this is Python " + version + ", " + TEXT + " is needed: make PYTHON=/path/to/python3.11 ..."


if __name__ == "__main__":
    problem = find_problem()
    if problem:
        sys.stderr.write("error: " + problem + "\n")
        sys.exit(2)
