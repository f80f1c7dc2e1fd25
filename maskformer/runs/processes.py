"""One process for each device: started here for ``--num-gpus``, or found, where torchrun has started them."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import torch
from detectron2.utils import comm
from torch import distributed

from maskformer.engine.accelerator import Accelerator, device_count
from maskformer.structures import InputError

from .failures import explained
from .peers import Watch
from .signals import REQUESTS, passing_signals_on

PROCESSES_PER_CORE = 4  # more would only wait for each other, and each takes memory
PORTS = range(20000, 32768)  # below those that systems give to connections
TIMEOUT = timedelta(minutes=30)  # evaluation on one rank may keep the others waiting


@dataclass(frozen=True)
class Rank:
    """The place of a process among all.

    Attributes:
        rank: over all machines.
        world_size: processes over all machines.
        local_rank: on its machine.
        local_world_size: processes on its machine.
        url: where the processes meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    url: str


def run_in_processes(main: Callable[..., Any], args: argparse.Namespace, device: str) -> None:
    """Run ``main(args)`` once in each process.

    Args:
        main: a function at the top of a module, so that other processes can find it.
        args: ``num_gpus`` (processes on this machine), ``num_machines``, ``machine_rank``, ``dist_url``; torchrun's
            variables RANK, WORLD_SIZE, LOCAL_RANK go before them.
        device: what ``resolve_device`` gave.

    Raises:
        RunError: memory, a data worker or another process was lost.
        InputError: more processes than devices, or an address that other machines cannot know.
    """
    if started_by_torchrun():
        _run_rank(_rank_of_torchrun(), main, args, device)
        return
    if args.num_gpus * args.num_machines == 1:
        explained(main)(args)
        return
    _check_devices(args.num_gpus, device, "--num-gpus")
    url = _meeting_point(args)
    _start_processes((main, args, device, url), args.num_gpus)


def started_by_torchrun() -> bool:
    """Whether the environment says which rank this process has."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def _start_processes(arguments: tuple[Any, ...], count: int) -> None:
    """Run ``_run_worker`` in processes that get this one's signals, and wait for them."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which they inherit: it must not end them as they start
    try:
        context = torch.multiprocessing.start_processes(_run_worker, arguments, nprocs=count, join=False)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with passing_signals_on(context.processes):
        while not context.join():
            pass


def _run_worker(local_rank: int, main: Callable[..., Any], args: argparse.Namespace, device: str, url: str) -> None:
    rank = Rank(
        rank=args.machine_rank * args.num_gpus + local_rank,
        world_size=args.num_machines * args.num_gpus,
        local_rank=local_rank,
        local_world_size=args.num_gpus,
        url=url,
    )
    with REQUESTS.listening():
        _run_rank(rank, main, args, device)


def _rank_of_torchrun() -> Rank:
    variables = os.environ
    world_size = int(variables["WORLD_SIZE"])
    return Rank(
        rank=int(variables["RANK"]),
        world_size=world_size,
        local_rank=int(variables["LOCAL_RANK"]),
        local_world_size=int(variables.get("LOCAL_WORLD_SIZE", world_size)),
        url="env://",
    )


def _run_rank(rank: Rank, main: Callable[..., Any], args: argparse.Namespace, device: str) -> None:
    """Join the other processes, run, and leave."""
    accelerator = Accelerator(device)
    _check_devices(rank.local_world_size, device, "The number of processes a machine")
    if rank.local_world_size > 1 and accelerator.device.index is not None:
        raise InputError(
            f"MODEL.DEVICE is {device!r}, but {rank.local_world_size} processes need one each: leave the index out."
        )
    accelerator.select(rank.local_rank)
    distributed.init_process_group(
        accelerator.process_group_backend(),
        init_method=rank.url,
        rank=rank.rank,
        world_size=rank.world_size,
        timeout=TIMEOUT,
    )
    comm.create_local_process_group(rank.local_world_size)
    watch = Watch(os.environ.get("MASTER_ADDR") if rank.url == "env://" else urlsplit(rank.url).hostname)
    explained(main)(args)
    # After an error neither is reached: they could wait for ranks that no longer answer.
    comm.synchronize()  # rank 0 keeps the addresses of all: it must not leave while another still needs them
    watch.close()
    distributed.destroy_process_group()


def _check_devices(num_processes: int, device: str, asked_by: str) -> None:
    device_type = torch.device(device).type
    available = device_count(device_type)
    per_device = PROCESSES_PER_CORE if device_type == "cpu" else 1
    if num_processes > available * per_device:
        unit = f"CPU cores, enough for {available * per_device}" if device_type == "cpu" else f"{device_type} devices"
        raise InputError(f"{asked_by} is {num_processes}, but this machine has {available} {unit}.")


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
