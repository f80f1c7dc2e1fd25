"""Command line and processes of a run: one for each device, started here for ``--num-gpus``, or found (torchrun's)."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
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
    variables = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= variables.keys():
        rank, world_size, local_rank = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        on_machine = int(variables.get("LOCAL_WORLD_SIZE", world_size))
        _check_devices(on_machine, device, "The number of processes a machine")
        _join_and_run(main, args, device, "env://", (rank, world_size, local_rank, on_machine))
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
            _join_and_run(main, args, device, url, (rank, world_size, local_rank, args.num_gpus))
    except Exception as error:  # only its text reaches the process that started this one
        if isinstance(error, (InputError, RunError)) or (sentence := explain(error)) is None:
            raise
        raise RunError(sentence) from error


def _join_and_run(
    main: Callable[..., Any], args: argparse.Namespace, device: Device, url: str, place: tuple[int, int, int, int]
) -> None:
    """Run, joined with others; ``place``: rank and number of processes over all machines, and both on this one."""
    rank, world_size, local_rank, local_world_size = place
    if local_world_size > 1 and device.device.index is not None:
        raise InputError(
            f"MODEL.DEVICE is '{device.device}', but {local_world_size} processes need one each: leave the index out."
        )
    device.select(local_rank)
    backend = device.process_group_backend()
    distributed.init_process_group(backend, init_method=url, rank=rank, world_size=world_size, timeout=TIMEOUT)
    comm.create_local_process_group(local_world_size)
    main(args)
    # After an error neither is reached: they could wait for ranks that no longer answer.
    comm.synchronize()  # rank 0 keeps the addresses of all: it must not leave while another still needs them
    distributed.destroy_process_group()


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
