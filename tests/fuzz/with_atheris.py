"""Coverage-guided fuzzing of the same readers with atheris, which is no dependency: pip install atheris

    python tests/fuzz/with_atheris.py "configuration" -runs=5000

The first word is a kind of tests/fuzz/readers.py; what follows are libFuzzer's options.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["maskformer", "yaml", "PIL", "pickle"]):
    from guard import outcome
    from readers import READERS


def main() -> None:
    """Fuzz until libFuzzer has enough; a failure ends the process with its input in the current folder."""
    kind = sys.argv.pop(1)
    reader = READERS[kind]
    with tempfile.TemporaryDirectory() as name:
        folder, seeds = Path(name, "work"), Path(name, "seeds")
        folder.mkdir()
        seeds.mkdir()
        reader.prepare(folder)
        for index, content in enumerate(reader.seeds):
            (seeds / str(index)).write_bytes(content)
        atheris.Setup([*sys.argv, str(seeds)], lambda content: outcome(lambda: reader.use(content, folder), folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
