"""What a node of the test cluster, or its controller, hangs from: one process that starts the
daemons, buries the dead and, when it ends, takes everything below along.

    python cluster_node.py vn1 /tmp/mgpt-slurm-x net   # by cluster.py, inside the node's namespaces

SIGHUP starts a daemon of Slurm that is gone again; SIGTERM ends everything. Uses the standard
library alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NETWORK = "10.201.0"
HOSTS_MARK = "# a node of mgpt's tests"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PR_SET_CHILD_SUBREAPER = 36


def until(what: str, done: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> None:
    """Returns once `done()`; TimeoutError that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


def children(pid: int) -> list[int]:
    """Pids of a process's children; none where it is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for t in threads for word in (t / "children").read_text().split()]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Pids of all processes below one, children before their parents."""
    found: list[int] = []
    for child in children(pid):
        found += [*descendants(child), child]
    return found


def call(*words: str) -> str:
    """Runs a tool of the system to its end; returns what it prints."""
    return subprocess.run(
        words,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        env={**os.environ, "PATH": PATH},
    ).stdout


def _be(name: str, folder: Path, mode: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    start_again = _start_slurmctld if name == "controller" else _start_slurmd
    signal.signal(signal.SIGHUP, lambda *_: start_again(name, folder))
    # What a dead slurmd leaves behind hangs from here, not from the machine's first process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        if mode == "net":
            _enter_network(name, folder)
        if name == "controller":
            _start_controller(name, folder, mode)
        else:
            _start_slurmd(name, folder)
        (folder / f"{name}.ready").touch()
        while True:
            try:
                os.wait()
            except ChildProcessError:
                time.sleep(0.2)
    finally:
        _end_all_below()
        if name == "controller" and mode == "plain":
            _name_nodes([])


def _end_all_below() -> None:
    for _ in range(50):  # those that start others while they are ended are met in the next round
        left = descendants(os.getpid())
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except OSError:  # gone, or another's child: it comes to us in the next round
                continue


def _enter_network(name: str, folder: Path) -> None:
    call("hostname", name)
    call("ip", "link", "set", "lo", "up")
    call("mount", "--bind", str(folder / "hosts"), "/etc/hosts")
    if name == "controller":
        call("ip", "link", "add", "br0", "type", "bridge")
        call("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "br0")
        call("ip", "link", "set", "br0", "up")
    else:
        call("mount", "-t", "tmpfs", "-o", "size=256m,mode=1777", "tmpfs", "/dev/shm")
        linked = re.compile(r"^eth0\S*\s+UP", re.M)
        until("a network", lambda: bool(linked.search(call("ip", "-br", "link"))), 20)


def _start_controller(name: str, folder: Path, mode: str) -> None:
    if mode == "plain":
        _name_nodes((folder / "hosts").read_text().splitlines()[1:])
    _daemon(
        folder / "log" / "munged.out",
        "munged",
        "--foreground",
        f"--key-file={folder}/munge/munge.key",
        f"--seed-file={folder}/munge/munge.seed",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/log/munged.log",
        "--num-threads=2",
    )
    until("munged", (folder / "munge.socket").exists, 10)
    _start_slurmctld(name, folder)


def _start_slurmctld(name: str, folder: Path) -> None:
    _daemon(folder / "log" / f"slurmctld.{name}.out", "slurmctld", "-D")


def _start_slurmd(name: str, folder: Path) -> None:
    (folder / "spool" / name).mkdir(parents=True, exist_ok=True)
    _daemon(folder / "log" / f"slurmd.{name}.out", "slurmd", "-D", "-N", name)


def _daemon(log: Path, *words: str) -> None:
    with log.open("ab") as file:
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _name_nodes(lines: list[str]) -> None:
    """Lists the nodes in the machine's /etc/hosts, or takes them out; mode `plain` only."""
    table = Path("/etc/hosts")
    kept = [line for line in table.read_text().splitlines() if HOSTS_MARK not in line]
    # Written in place: in a container the file is a mount, which cannot be replaced.
    table.write_text("\n".join([*kept, *lines, ""]))


if __name__ == "__main__":
    _be(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
