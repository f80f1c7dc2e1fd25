"""Command line and processes of a run: one for each device, started here for ``--num-gpus``, or found (torchrun's)."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import re
import secrets
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from torch import distributed

from maskformer.structures import InputError, RunError

from .failures import explain
from .signals import REQUESTS, passing_signals_on

PORTS = range(20000, 32768)  # below those that systems give to connections
TIMEOUT = timedelta(minutes=30)  # evaluation on one rank may keep the others waiting
STORE_TIMEOUT = timedelta(seconds=5)  # to look again where rank 0 is to be found
SHARE_TIMEOUT = timedelta(days=7)  # a rank that has done its share waits for the slowest
MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # glibc's, of a user

_EXAMPLES = """
Examples:

Train, and evaluate on the way and at the end; results go to OUTPUT_DIR:
    $ python train_net.py --config-file configs/shapes/maskformer_panoptic.yaml OUTPUT_DIR output/shapes

Go on with a run that was interrupted:
    $ python train_net.py --resume --config-file FILE OUTPUT_DIR output/shapes

Train in several processes, one for each device of this machine; or let torchrun start them, on several machines too:
    $ python train_net.py --config-file FILE --num-gpus 8
    $ torchrun --nproc-per-node 8 train_net.py --config-file FILE

Evaluate weights:
    $ python train_net.py --eval-only --config-file FILE MODEL.WEIGHTS output/shapes/model_final.pth

Change any key of the configuration:
    $ python train_net.py --config-file FILE MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0001
"""


class Device(Protocol):
    """What is asked of a device here; it is sent to the processes. ``engine.accelerator.Accelerator`` has it."""

    device: torch.device

    def num_processes(self) -> int:
        """How many processes this machine bears on such devices."""

    def select(self, local_rank: int) -> None:
        """Make the device current that belongs to a process."""

    def process_group_backend(self) -> str:
        """What ``torch.distributed.init_process_group`` takes."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others of its run; by default it is alone.

    Attributes:
        rank: among all, from 0 on.
        world_size: how many there are.
        local_rank: among those of this machine; it is the number of the process's device.
        local_world_size: how many this machine has.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def is_of_torchrun() -> bool:
    """Whether torchrun, or whoever sets its variables, has started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def find_place() -> Place:
    """What torchrun's variables say."""
    if not is_of_torchrun():
        return Place()
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, world_size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))


def is_restarted() -> bool:
    """Whether torchrun has started the processes of this machine again, after one of them failed (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_be_restarted() -> bool:
    """Whether torchrun was told to start processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def find_shard(shard: str | None) -> slice:
    """Which pieces of a list of work a shard has.

    Args:
        shard: "I/N": every N-th piece, the first of which is I, counted from 0; None: all.

    Raises:
        InputError: there is no such shard.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "0/1" if shard is None else shard)
    index, count = (int(number) for number in match.groups()) if match else (0, 0)
    if index >= count:
        raise InputError(
            f"--shard is {shard!r}; expected I/N with I from 0 to N - 1: the shards of four are 0/4, 1/4, 2/4 and 3/4 "
            "(in a SLURM job with --array=0-3: --shard $SLURM_ARRAY_TASK_ID/4)."
        )
    return slice(index, None, count)


def gather_from_ranks(value: Any) -> list[Any]:
    """Wait for all that torchrun started, and give what each of them says, by rank.

    It is for processes that need each other for nothing else, and join only here. They must: torchrun ends all others
    when one ends with an exit code.
    """
    place = find_place()
    if place.world_size == 1:
        return [value]
    _join("gloo", "env://", place, SHARE_TIMEOUT)
    values: list[Any] = [None] * place.world_size
    distributed.all_gather_object(values, value)
    distributed.barrier()  # rank 0 keeps the addresses of all: it must not leave while another still needs them
    distributed.destroy_process_group()
    return values


def build_argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, with our examples in the help."""
    parser = default_argument_parser(epilog=_EXAMPLES)
    parser.add_argument("--data", default="", metavar="FILE", help="its keys, such as DATASETS, are laid over the file")
    parser.set_defaults(dist_url="auto")  # not the one port of each user: a second run on the machine needs another
    return parser


def run_in_processes(main: Callable[..., Any], args: argparse.Namespace, device: Device) -> None:
    """Run ``main(args)`` once in each process.

    Args:
        main: a function at the top of a module, so that other processes can find it.
        args: ``num_gpus`` (processes on this machine), ``num_machines``, ``machine_rank``, ``dist_url``; torchrun's
            variables RANK, WORLD_SIZE, LOCAL_RANK go before them.
        device: where each process computes.

    Raises:
        InputError: more processes than devices, or an address that other machines cannot know.
    """
    if is_of_torchrun():
        _join_and_run(main, args, device, "env://", find_place())
    elif args.num_gpus * args.num_machines == 1:
        main(args)
    else:
        _check_devices(args.num_gpus, device, "--num-gpus")
        _start_processes((main, args, device, _meeting_point(args)), args.num_gpus)


def _start_processes(arguments: tuple[Any, ...], count: int) -> None:
    """Run ``_run_worker`` in processes that get this one's signals, and wait for them.

    PyTorch ends the others when one is lost (SIGTERM, after 30 s SIGKILL), and all when this process is (SIGINT).
    """
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which they inherit: it must not end them as they start
    try:
        context = torch.multiprocessing.start_processes(_run_worker, arguments, nprocs=count, join=False)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with passing_signals_on(context.processes):
        while not context.join():
            pass


def _run_worker(local_rank: int, main: Callable[..., Any], args: argparse.Namespace, device: Device, url: str) -> None:
    rank, world_size = args.machine_rank * args.num_gpus + local_rank, args.num_machines * args.num_gpus
    try:
        with REQUESTS.listening():
            _join_and_run(main, args, device, url, Place(rank, world_size, local_rank, args.num_gpus))
    except Exception as error:  # only its text reaches the process that started this one
        if isinstance(error, (InputError, RunError)) or (sentence := explain(error)) is None:
            raise
        raise RunError(sentence) from error


def _join_and_run(main: Callable[..., Any], args: argparse.Namespace, device: Device, url: str, place: Place) -> None:
    """Run, joined with others."""
    take_device(device, place)
    backend = device.process_group_backend()
    _join(backend, url, place, TIMEOUT)
    comm.create_local_process_group(place.local_world_size)
    main(args)
    # After an error neither is reached: they could wait for ranks that no longer answer.
    comm.synchronize()  # rank 0 keeps the addresses of all: it must not leave while another still needs them
    distributed.destroy_process_group()


def _join(backend: str, url: str, place: Place, timeout: timedelta) -> None:
    """Make the processes of a run a group: they meet at an address, or in a store of their own."""
    keeps_what_was = may_be_restarted() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    meeting: dict[str, Any] = {"store": _open_store(place)} if keeps_what_was else {"init_method": url}
    distributed.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=timeout, **meeting)


def _open_store(place: Place) -> distributed.TCPStore:
    """A store that ends with these processes, opened by rank 0, which says in torchrun's own where it is.

    torchrun's outlives processes: those that it starts again would read there where the earlier ones were to be found.
    Its count of restarts cannot tell both apart, because it differs between machines.
    """
    host, port, key = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "maskformer"
    of_torchrun = distributed.TCPStore(host, port, is_master=False, timeout=TIMEOUT)
    if place.rank == 0:
        store, name = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False), secrets.token_hex()
        store.set(key, name)
        of_torchrun.set(key, f"{store.port} {name}")
        return store
    end = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < end:
        own_port, name = of_torchrun.get(key).decode().split()
        with contextlib.suppress(distributed.DistError):  # an earlier rank 0 had that port
            store = distributed.TCPStore(host, int(own_port), is_master=False, timeout=STORE_TIMEOUT)
            if store.get(key).decode() == name:
                return store
    raise RunError(f"Rank 0 was not found within {TIMEOUT} (rank {place.rank}, {host}).")


def take_device(device: Device, place: Place) -> None:
    """Make the device current that belongs to a process's place, or that the device's own index says.

    Raises:
        InputError: this machine has fewer devices than processes, or the index would be the same for several.
    """
    _check_devices(place.local_world_size, device, "The number of processes a machine")
    if place.local_world_size > 1 and device.device.index is not None:
        raise InputError(
            f"MODEL.DEVICE is '{device.device}', but {place.local_world_size} processes need one each: leave the index "
            "out."
        )
    device.select(place.local_rank)


def _check_devices(num_processes: int, device: Device, asked_by: str) -> None:
    if num_processes > (most := device.num_processes()):
        kind = device.device.type
        raise InputError(f"{asked_by} is {num_processes}, but the {kind} devices of this machine bear {most}.")


def _meeting_point(args: argparse.Namespace) -> str:
    if args.dist_url != "auto":
        return args.dist_url
    if args.num_machines > 1:
        raise InputError(
            "--dist-url is auto, but with --num-machines it must name a port of machine 0: tcp://HOST:PORT."
        )
    while True:  # drawn, for another run that starts now may be offered the port that the system offers here
        port = secrets.choice(PORTS)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return f"tcp://127.0.0.1:{port}"


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep freed memory for the next step, unless a user has set its variables.

    It would give tensors of 32 MB and more back to the system, and those of every step would fault in page by page;
    docs/performance.md has the times. The process then holds its peak.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None and not any(name in os.environ for name in MALLOC_VARIABLES):
        set_option(-4, 0)  # M_MMAP_MAX of mallopt(3): no block is mapped apart
        set_option(-1, -1)  # M_TRIM_THRESHOLD: none is given back


@contextlib.contextmanager
def process_as_it_was(loggers: Iterable[str]) -> Iterator[None]:
    """After the ``with`` block, what a run changes in its process is as it was before; random numbers are not.

    That is warnings, environment variables, PyTorch's flags, and loggers of these names.
    """
    environment, benchmark = dict(os.environ), torch.backends.cudnn.benchmark
    determinism = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = [
        (each, each.level, each.propagate, list(each.handlers), list(each.filters))
        for each in map(logging.getLogger, loggers)
    ]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(determinism[0], warn_only=determinism[1])
        for logger, level, propagate, handlers, filters in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers[:], logger.filters[:] = propagate, handlers, filters


def compute_deterministically() -> None:
    """Compute the same bits each time; an operation that has no such form on the device warns at each use."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS heeds it before its first product
    torch.backends.cudnn.benchmark = False  # it chooses by the clock
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("default", message=".*deterministic", category=UserWarning)
