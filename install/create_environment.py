"""Creates the virtual environment that `make demo` and `make test` run in, and says what it is doing.

    python install/create_environment.py .venv

Every version is pinned in `constraints.txt` and, on the platform that `pin_hashes.py` was run on, every file by its
SHA-256 too. A second call, or one after an interruption, reuses what is there. An official Detectron2 or
panopticapi that is already installed in the environment is kept. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import python_range

HERE = Path(__file__).resolve().parent
NEEDED_GIB = 8
# What the hashes of all packages are for, and the files of wheels and of source packages, which pin_hashes.py writes.
PLATFORM = f"CPython {python_range.TEXT} on Linux x86-64"
HASHES = ("hashes-wheels.txt", "hashes-sources.txt")
# Other PyTorch releases that the tests were run with, and what these need instead of the versions in constraints.txt.
OTHER_TORCH = {
    "2.7.1": {"torchvision": "0.22.1"},
    "2.4.1": {
        "torchvision": "0.19.1",
        "transformers": "4.57.6",  # the last that knows PyTorch 2.4, with what it needs in turn
        "huggingface-hub": "0.36.2",
        "tokenizers": "0.22.2",
    },
}
# Of pip's own settings, those that say how to reach the packages; the others would change what is installed.
PIP_SETTINGS_KEPT = re.compile(
    r"PIP_((EXTRA_)?INDEX_URL|FIND_LINKS|CERT|CLIENT_CERT|TRUSTED_HOST|PROXY|RETRIES|(DEFAULT_)?TIMEOUT"
    r"|(NO_)?CACHE_DIR|CONFIG_FILE|KEYRING_PROVIDER)"
)
# Lines of pip's output that a person can follow. The others go to the log file only.
PIP_NEWS = re.compile(r"^\s*((?:Downloading|Collecting|Building wheel|Installing collected|Preparing metadata)\b.*)")
ANOTHER_PYTHON = "take another Python: make PYTHON=/path/to/python3.11 ..."


class SetupError(Exception):
    """A problem that the user can act on: what went wrong and what to do."""


@dataclass(frozen=True)
class Step:
    """One command of the installation.

    Attributes:
        title: What it does, for the progress line.
        duration: How long it usually takes.
        command: The command.
        advice: What the user can do if it fails for a reason that `find_cause` does not know.
    """

    title: str
    duration: str
    command: Sequence[str | Path]
    advice: str


def clean_environment() -> dict[str, str]:
    """Returns the environment variables without the settings of Python and pip, but for how to reach the packages."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if PIP_SETTINGS_KEPT.fullmatch(name) or not name.startswith(("PIP_", "PYTHON"))
    }
    return {**kept, "PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def check_machine(folder: Path) -> None:
    """Raises SetupError if this Python, the folder or the disk cannot hold the environment."""
    if problem := python_range.find_problem():
        raise SetupError(problem)
    if sys.version_info[:2] > python_range.parse(python_range.TESTED[-1]):
        print(f"note: Python {platform.python_version()} is newer than what was tested ({python_range.TEXT})")
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise SetupError(f"{folder} exists and is no virtual environment: move it away, or name another folder")
    free_gib = shutil.disk_usage(folder.resolve().parent).free / 2**30
    if not folder.exists() and free_gib < NEEDED_GIB:
        raise SetupError(f"{free_gib:.1f} GiB are free in {folder.resolve().parent}, about {NEEDED_GIB} are needed")


def has_pip(python: Path) -> bool:
    """Whether an environment's Python runs and has pip."""
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0


def find_repacked(python: Path, wheels: Path) -> list[Path]:
    """Returns the repacked wheels to install: all, less those of which another distribution is there already."""
    code = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    listed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.lower().split()
    installed = dict(item.split("==") for item in listed if "==" in item)
    wanted = {path.name.split("-")[0]: path for path in sorted(wheels.glob("*.whl"))}
    return [path for name, path in wanted.items() if "+repacked" in installed.get(name, "+repacked")]


def last_news(log: Path) -> str:
    """Returns the last line of pip's output that tells what it is doing now."""
    found = [match.group(1) for line in log.read_text(errors="replace").splitlines() if (match := PIP_NEWS.match(line))]
    return re.sub(r"https?://\S*/|: .*", "", found[-1])[:60] if found else "working"


def follow(process: subprocess.Popen[bytes], log: Path, head: str) -> None:
    """Waits for a process and shows what it does: one line written over on a terminal, else a line every 15 seconds."""
    start, is_terminal = time.monotonic(), sys.stdout.isatty()
    period = 1 if is_terminal else 15
    while True:
        try:
            process.wait(period)
            break
        except subprocess.TimeoutExpired:
            line = f"{head} {time.monotonic() - start:.0f} s: {last_news(log)}"
            print(f"\r{line[:118]:<118}" if is_terminal else line, end="" if is_terminal else "\n", flush=True)
    line = f"{head} {'done' if process.returncode == 0 else 'FAILED'} after {time.monotonic() - start:.0f} s"
    print(f"\r{line:<118}" if is_terminal else line, flush=True)


def explain_missing(requirement: str, text: str) -> tuple[str, str] | None:
    """Returns why pip has no file of a requirement, and what to do; None if there is one. See `find_cause`."""
    name, _, version = requirement.partition("==")
    dashed = re.sub(r"[-_.]+", "[-_.]+", name)
    # An index that does not know a package answers 404; there may be others that do.
    unreached = rf"(?i)Could not fetch URL (\S+/{dashed}/?: (?!404 ).+?)(?: - skipping)?\n"
    if match := re.search(unreached, text):
        return (
            f"no network, or the package index refused: {match[1]}",
            "check the network, the proxy and pip's settings",
        )
    file = rf"\S*/{dashed}-{re.escape(version)}[-.]" if version else rf"\S*/{dashed}-\d"
    if re.search(rf"(?i)Found link {file}", text):
        return None
    this = f"Python {platform.python_version()} on {platform.machine()}"
    if match := re.search(rf"(?i)requires a different Python \(\S+ not in: '(.+)'\): {file}", text):
        return f"{requirement} needs Python {match[1]}, this is {this}", ANOTHER_PYTHON
    if re.search(rf"(?i)none of the wheel's tags \(.+\) are compatible.*: {file}", text):
        return f"no matching version: {requirement} has no file for {this}", ANOTHER_PYTHON
    return f"no matching version: the package index has no {requirement}", "check pip's index settings"


def find_cause(text: str) -> tuple[str, str] | None:
    """Returns why a step failed, and what to do about it; None if it is none of the known reasons.

    Args:
        text: The step's output, and pip's own log, which says what happened to each page and file.
    """
    if re.search(r"\[Errno (28|122)\]|No space left on device", text):
        return "the disk is full", f"make room: {NEEDED_GIB} GiB for the environment, 3 GiB in {tempfile.gettempdir()}"
    if match := re.search(r"Error: (\[Errno (?:13|30)\] .*)", text):
        return match[1], "make it writable, or name another folder"
    if match := re.search(r"(?m)^ +(\S+) from .*:\n((?: +Expected .*\n)+ +Got +\w+)", text):
        sums = " ".join(match[2].split())
        return f"{match[1]} has another hash than the pinned one: {sums}", "do not use it; check pip's index settings"
    if match := re.search(r"Package '(\S+)' requires a different Python: (\S+) not in '(.+)'", text):
        return f"{match[1]} needs Python {match[3]}, this is {match[2]}", ANOTHER_PYTHON
    # With pinned versions, a version that is not there looks like a contradiction.
    pattern = r"No matching distribution found for ([\w.-]+(?:==[\w.+!-]+)?)|\(constraint\) ([\w.-]+).*?(==[\w.+!-]+)"
    for match in re.finditer(pattern, text):
        if explained := explain_missing(match[1] or match[2] + match[3], text):
            return explained
    if match := re.search(r"Cannot install (.+) because these package versions have conflicting dep", text):
        return f"versions contradict one another: {match[1]}", "mend install/constraints.txt"
    if match := re.search(
        r"Failed building wheel for (\S+)|Failed to build '?([^'\s]+)|metadata-generation-failed", text
    ):
        return f"a source package could not be built: {match[1] or match[2] or ''}", "is there a C compiler?"
    broken = r"HTTP error \d+ while getting \S+|Read timed out|IncompleteRead|incomplete-download|\S+ is invalid\."
    if match := re.search(broken, text):
        return f"a download broke off: {match[0]}", "check the network, then run the same command again; it goes on"
    return None


def run_step(step: Step, position: str, log: Path) -> None:
    """Runs one step with its output in the log file, and pip's own log beside it.

    Raises:
        SetupError: The command failed; the message has the end of its output, the cause and what to do.
    """
    head = f"[{position}] {step.title}:"
    print(f"{head} {step.duration}", flush=True)
    pip_log = log.with_name(f"{log.name.removesuffix('-install.log')}-pip-install.log")
    pip_log.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**clean_environment(), "PIP_LOG": str(pip_log)},
        )
        try:
            follow(process, log, head)
        finally:
            process.terminate()
    if process.returncode != 0:
        texts = [path.read_text(errors="replace") for path in (log, pip_log) if path.exists()]
        said = [line[:300] for line in texts[0].splitlines() if not line.startswith("Ignoring ")]  # for another Python
        end = "\n".join(said[-12:])
        cause, advice = find_cause("\n".join(texts)) or ("see the output above", step.advice)
        if process.returncode < 0:
            cause, advice = f"ended by signal {-process.returncode} (9: perhaps out of memory)", "run it again"
        failed = f"failed: {step.title} (all output: {log}, details: {pip_log.name})"
        raise SetupError(f"{end}\n{failed}\ncause: {cause}\nwhat to do: {advice}")
    pip_log.unlink(missing_ok=True)


def write_constraints(folder: Path, torch: str | None) -> Path:
    """Returns the file of pinned versions: ours, or a copy in the environment with another PyTorch.

    Raises:
        SetupError: Nothing is known of that PyTorch.
    """
    ours = HERE / "constraints.txt"
    if torch is None:
        return ours
    if torch not in OTHER_TORCH:
        raise SetupError(f"TORCH is {torch}, tried were {', '.join(OTHER_TORCH)}: add what it needs to OTHER_TORCH")
    others = {"torch": torch, **OTHER_TORCH[torch]}
    kept = [line for line in ours.read_text().splitlines() if line.split("==")[0] not in others]
    path = folder / "constraints.txt"
    path.write_text("\n".join([*kept, *(f"{name}=={version}" for name, version in others.items())]) + "\n")
    return path


def has_hashes() -> bool:
    """Whether this Python and machine are those that the hashes are for."""
    return (
        "{}.{}".format(*sys.version_info) in python_range.TESTED
        and platform.python_implementation() == "CPython"
        and not sysconfig.get_config_var("Py_GIL_DISABLED")  # a build that has wheels of its own
        and (platform.system(), platform.machine()) == ("Linux", "x86_64")
        and platform.libc_ver()[0] == "glibc"
    )


def choose_packages(
    install: Sequence[str | Path], folder: Path, torch: str | None
) -> tuple[list[Sequence[str | Path]], Sequence[str | Path]]:
    """Returns how third-party packages are installed, and how our own: by hash where there are hashes, else by version.

    Args:
        install: pip's command and options.
        folder: Of the environment.
        torch: Another PyTorch than the pinned one.

    Returns:
        Commands that install packages, the first of them PyTorch and setuptools; and the beginning of the command that
        installs what is made here.
    """
    if torch is None and has_hashes():
        # All of them are listed, so pip is to add none: --no-deps.
        by_hash = (*install, "--no-deps", "--require-hashes")
        wheels, sources = (HERE / name for name in HASHES)
        commands: list[Sequence[str | Path]] = [
            (*by_hash, "--only-binary=:all:", "--requirement", wheels),
            (*by_hash, "--no-build-isolation", "--requirement", sources),
        ]
        return commands, (*install, "--no-deps", "--no-build-isolation")
    print(f"note: packages are checked by version, not by SHA-256: there are hashes for {PLATFORM}, PyTorch as pinned")
    by_version = (*install, "--constraint", write_constraints(folder, torch))
    return [(*by_version, "torch", "torchvision", "setuptools")], (*by_version, "--no-build-isolation")


def create(folder: Path, torch: str | None = None) -> None:
    """Creates or completes the virtual environment, with another PyTorch than the pinned one if it is named."""
    check_machine(folder)
    python = folder / "bin" / "python"
    # Outside the environment, because the first step may clear it; beside it, so that it is easy to find.
    log = folder.with_name(f"{folder.name}-install.log")
    again = "when its reason is gone, run the same command again; it goes on."
    pip: tuple[str | Path, ...] = (python, "-m", "pip")
    if not has_pip(python):
        advice = "on Debian and Ubuntu: apt install python3-venv; then run the same command again."
        make_environment = (sys.executable, "-m", "venv", "--clear", folder)
        run_step(Step(f"virtual environment {folder}", "some seconds", make_environment, advice), "1/6", log)
    # Python compiles a module when it is first imported; compiling all of them here would take a minute longer.
    install = (*pip, "install", "--prefer-binary", "--no-compile", "--progress-bar=off")
    packages, ours = choose_packages(install, folder, torch)
    for command in packages:
        run_step(Step("PyTorch and other packages", "1 to 10 minutes (3 GB to download)", command, again), "2/6", log)
    build = (python, HERE / "build_wheels.py", folder / "wheels")
    run_step(Step("Detectron2 wheel", "some seconds", build, again), "3/6", log)
    # The pinned setuptools is there already; an isolated build would download one for every source package.
    everything = (*ours, *find_repacked(python, folder / "wheels"), "--editable", f"{HERE.parent}[test,dev]")
    run_step(Step("MaskFormer and the rest", "1 to 2 minutes", everything, again), "4/6", log)
    advice = f"remove {folder} and run the same command again: versions in it contradict one another."
    run_step(Step("check of all versions", "some seconds", (*pip, "check"), advice), "5/6", log)
    start = (python, "-W", "ignore", "-c", "import detectron2.engine, scipy.optimize, maskformer")
    run_step(Step("first start", "half a minute", start, advice), "6/6", log)
    log.unlink()


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Create the virtual environment for MaskFormer.")
    parser.add_argument("folder", type=Path, help="folder of the environment, for example .venv")
    parser.add_argument("--torch", help="another PyTorch than the pinned one, for example 2.7.1")
    args = parser.parse_args()
    try:
        create(args.folder, args.torch)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
