"""Real `vla` commands in processes of their own, without the seconds that each takes to import.

A server imports everything once and forks for each command; a child goes through `vla.cli.main` and
ends as an interpreter does, so its exit status and its teardown are a real one's.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
PATIENCE = 300.0  # seconds, generous: a busy machine is no fault


class Forks:
    """The client: `with Forks() as forks: run = forks.start(folder, "train", …)`."""

    def __enter__(self) -> Self:
        paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()  # ends the server, which kills what is left
        self._server.stdout.close()
        self._server.wait(PATIENCE)

    def start(
        self,
        folder: Path,
        *arguments: str,
        processes: int = 1,
        largest_file: Sequence[int | None] = (),
    ) -> Run:
        """`vla ARGUMENTS` in as many processes as torchrun would start; what they print goes to
        `folder/said.<rank>`. largest_file: by rank, bytes that a file may have, as on a full disk.
        """
        folder.mkdir(parents=True, exist_ok=True)
        environments = [{}] if processes == 1 else _announced(processes)
        limits = [*largest_file, *[None] * (processes - len(largest_file))]
        pids = [
            self.ask(
                arguments=arguments,
                environment=environment,
                said=str(folder / f"said.{rank}"),
                largest_file=limits[rank],
            )
            for rank, environment in enumerate(environments)
        ]
        return Run(self, folder, pids)

    def ask(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


class Run:
    """The processes of one command, by rank."""

    def __init__(self, forks: Forks, folder: Path, pids: list[int]):
        self._forks, self.folder, self.pids = forks, folder, pids
        self._ended: dict[int, int] = {}

    def statuses(self) -> list[int | None]:
        """Exit statuses so far, −N of signal N; None: still running."""
        left = [pid for pid in self.pids if pid not in self._ended]
        answers = self._forks.ask(ended=left)
        self._ended |= {p: s for p, s in zip(left, answers, strict=True) if s is not None}
        return [self._ended.get(pid) for pid in self.pids]

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit statuses of all. Raises AssertionError, having killed them, if they take longer."""
        end = time.monotonic() + seconds
        while None in (statuses := self.statuses()):
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {statuses}. {self.said()}")
            time.sleep(0.02)
        return [s for s in statuses if s is not None]

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to those that still run, of `ranks` (None: all)."""
        for rank, status in enumerate(self.statuses()):
            if status is None and (ranks is None or rank in ranks):
                os.kill(self.pids[rank], number)

    def until(self, reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait for it; False if the run ended first. Raises AssertionError as `wait` does."""
        end = time.monotonic() + seconds
        for tries in itertools.count():
            if reached():
                return True
            if tries % 50 == 0 and None not in self.statuses():
                return reached()
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"not reached in {seconds} s. {self.said()}")
            time.sleep(0.001)
        raise AssertionError("counting doesn't end")

    def said(self, rank: int | None = None) -> str:
        """What was printed, by one process or all."""
        ranks = range(len(self.pids)) if rank is None else [rank]
        return "\n".join((self.folder / f"said.{r}").read_text() for r in ranks)


def _announced(processes: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [common | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def _serve() -> None:
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            answer = [_ended(pid, children) for pid in request["ended"]]
        else:
            answer = os.fork()
            if answer == 0:
                _be(**request)
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _ended(pid: int, children: set[int]) -> int | None:
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _be(
    arguments: list[str], environment: dict[str, str], said: str, largest_file: int | None
) -> None:
    """Turn this fork into a process of the command's; comes back by SystemExit alone."""
    from vla.cli import main

    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main(arguments)


def _import_all() -> None:
    import fake_run  # noqa: F401
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.fsdp

    import vla.training.loop  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # imports more


if __name__ == "__main__":
    _import_all()
    _serve()
