"""A real Slurm of several nodes on one machine, for tests: as root on Debian, without systemd.

In mode `net` each node has a hostname, a process table, /dev/shm and a network of its own, and
shares all files with the others, as nodes on one shared file system do; nothing listens on the
machine's own network. In mode `plain`, for places where namespaces are forbidden, the nodes are
processes side by side on 127.0.0.1. Either way a node is one process that everything on it hangs
from: when it ends, and it ends with the process that started the cluster, all of it ends.

    with Cluster(num_nodes=2) as cluster:
        job = cluster.submit("--nodes=2", "job.sh")
        cluster.wait(job, "COMPLETED")

By hand: `python tests/slurm/cluster.py 4` holds a cluster until Ctrl-C and says how to reach it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from cluster_node import HOSTS_MARK, NETWORK, PATH, call, children, descendants, until

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PORT = 26800  # of slurmctld; node I listens on PORT + I
NAMESPACES = ("--net", "--uts", "--mount")
NODE_NAMESPACES = (*NAMESPACES, "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")

SETTINGS = """\
ClusterName=test
SlurmctldHost={controller}({address})
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job may start again once its credential has expired (120 s by default).
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
{listening}
# The CPUs and memory below count, not the machine's.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
# Quick reactions
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
InactiveLimit=0
MinJobAge=3600
UnkillableStepTimeout=15
ReturnToService=2
JobRequeue=1
# A job in `high` requeues one in `main`.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT Nodes=ALL DefaultTime=10
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def lacks() -> str:
    """Why no cluster can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "Slurm's tests need root, for daemons that start jobs as their users"
    needed = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare", "nsenter", "setpriv")
    missing = [name for name in needed if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install -y {' '.join(PACKAGES)}"
    return ""


def can_unshare() -> bool:
    """Whether this process may make the namespaces of mode `net`."""
    probe = [
        "unshare",
        *NODE_NAMESPACES,
        "sh",
        "-c",
        "hostname probe && ip link add br0 type bridge",
    ]
    run = subprocess.run(probe, capture_output=True, timeout=20, env={**os.environ, "PATH": PATH})
    return run.returncode == 0


class Cluster:
    """`num_nodes` nodes vn1, vn2, … with 8 CPUs and 8 pretended GPUs each, idle on entry.

    `folder` holds slurm.conf, the logs and the state, and is removed at the end where it was made
    here. Raises TimeoutError, with the logs' ends, where the nodes do not come up.
    """

    def __init__(self, num_nodes: int, mode: str = "auto", folder: Path | None = None) -> None:
        self.names = [f"vn{index}" for index in range(1, num_nodes + 1)]
        self.mode = ("net" if can_unshare() else "plain") if mode == "auto" else mode
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="mgpt-slurm-"))
        self.folder.chmod(0o755)  # munged wants its socket within everybody's reach
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._write_settings()
            self._begin("controller")
            self._wait_ready("controller")
            for name in self.names:
                self.start_node(name)
            self.wait_idle(30)
        except BaseException as error:
            ends = self.logs()
            self.stop()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{error}\n{ends}") from None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every process of the cluster."""
        for name in sorted(self._processes):  # the controller first: no requeue of what dies
            self._end(name)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- commands -------------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """The words as a command line that runs where the cluster is reached."""
        if self.mode == "plain":
            return list(words)
        options = ["--net", "--uts", "--mount", f"--wd={os.getcwd()}"]
        return ["nsenter", "-t", str(self._pid_of("controller")), *options, "--", *words]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with what Slurm's clients need, and no job's variables."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_"))
        }
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def run(
        self, *words: str, check: bool = True, timeout_s: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a client: sbatch, scontrol, mgpt; AssertionError with its words where it fails."""
        run = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**self.environment, **environment},
        )
        assert not check or run.returncode == 0, (
            f"{words}: {run.stdout[-3000:]}{run.stderr[-3000:]}"
        )
        return run

    def submit(self, *words: str) -> str:
        """`sbatch`; returns the job's number."""
        return self.run("sbatch", "--parsable", *words).stdout.split(";")[0].strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field; of an array, its last element."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", shown, re.M))

    def states(self, number: str) -> list[str]:
        """The state of a job, or of each element of an array."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return re.findall(r"JobState=(\w+)", shown)

    def nodes_of(self, number: str) -> list[str]:
        """The nodes that a job runs on."""
        return self.run(
            "scontrol", "show", "hostnames", self.job(number)["NodeList"]
        ).stdout.split()

    def wait(self, number: str, *wanted: str, timeout_s: float = 120) -> None:
        """Returns once the job, or each element of it, is in one of the states.

        AssertionError at once where it ended in another.
        """

        def there() -> bool:
            states = self.states(number)
            lost = [state for state in states if state in ENDED and state not in wanted]
            assert not lost, f"job {number} is {states}, not {wanted}"
            return all(state in wanted for state in states)

        until(f"job {number} {'|'.join(wanted)}", there, timeout_s, every_s=0.2)

    def restore(self) -> None:
        """Cancels every job and starts what was killed; returns with all nodes idle."""
        self.run("scancel", "--user=root", check=False)
        for name in self.names:
            if name not in self._processes or not self._daemons(name, "slurmd"):
                self.start_node(name)
        until("an empty queue", lambda: not self.run("squeue", "-h").stdout.strip(), 60, 0.2)
        for name in self.names:  # one whose tasks took too long to end is drained; others refuse
            self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        self.wait_idle()

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Returns once every node waits for work."""

        shown = ""

        def idle() -> bool:
            nonlocal shown
            shown = self.run("sinfo", "-h", "-p", "main", "-o", "%T %D %N %E", check=False).stdout
            return shown.startswith(f"idle {len(self.names)} ")

        try:
            until("all nodes idle", idle, timeout_s, every_s=0.1)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {shown}\n{self.logs()}") from None

    def logs(self, lines: int = 15) -> str:
        """The last lines of each daemon's log."""
        ends = []
        for file in sorted((self.folder / "log").glob("*")):
            text = file.read_text(errors="replace").splitlines()[-lines:]
            ends.append("\n".join([f"--- {file.name}", *text]))
        return "\n".join(ends)

    # --- nodes ----------------------------------------------------------------------------------

    def start_node(self, name: str) -> None:
        """Power on; where the node runs already, only its slurmd is started again."""
        if name in self._processes:
            os.kill(self._pid_of(name), signal.SIGHUP)
            return
        self._begin(name)
        if self.mode == "net":
            controller, node = str(self._pid_of("controller")), str(self._pid_of(name))
            link = f"ve{name[2:]}"
            until("a network", lambda: _namespace(node, "net") != _namespace("self", "net"), 10)
            in_controller = ("nsenter", "-t", controller, "--net", "ip", "link")
            peer = ("type", "veth", "peer", "name", "eth0", "netns", node)
            call(*in_controller, "add", link, *peer)
            call(*in_controller, "set", link, "master", "br0", "up")
            in_node = ("nsenter", "-t", node, "--net", "ip")
            call(*in_node, "addr", "add", f"{self._address(name)}/24", "dev", "eth0")
            call(*in_node, "link", "set", "eth0", "up")
        self._wait_ready(name)

    def kill_node(self, name: str) -> None:
        """Power loss: every process of the node ends at once."""
        self._end(name)

    def kill_slurmd(self, name: str) -> None:
        """SIGKILL to the node's slurmd alone; the steps that run there go on."""
        for pid in self._daemons(name, "slurmd"):
            os.kill(pid, signal.SIGKILL)

    def stop_controller(self) -> None:
        """Ends slurmctld in order, with its state kept; jobs go on, commands get no answer."""
        for pid in self._daemons("controller", "slurmctld"):
            os.kill(pid, signal.SIGTERM)
        until("its end", lambda: not self._daemons("controller", "slurmctld"), 20)

    def start_controller(self) -> None:
        """Starts it again from what it kept; returns once it answers."""
        os.kill(self._pid_of("controller"), signal.SIGHUP)
        until("an answer", lambda: not self.run("squeue", "-h", check=False).returncode, 30, 0.2)

    def cut(self, name: str) -> None:
        """Takes the node's network cable out; `net` only."""
        self._link(name, "down")

    def mend(self, name: str) -> None:
        """Puts the cable back."""
        self._link(name, "up")

    def processes(self, name: str, words: str) -> list[int]:
        """Pids, as seen here, of the node's Python processes whose command line holds the words."""
        found = []
        for pid in descendants(self._pid_of(name)):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "python" in line.split(" ")[0] and words in line:
                found.append(pid)
        return found

    def _daemons(self, name: str, daemon: str) -> list[int]:
        """Pids of a daemon; the slurmstepd of a step has another name than its slurmd."""
        return [pid for pid in descendants(self._pid_of(name)) if _command_name(pid) == daemon]

    def _link(self, name: str, state: str) -> None:
        controller = str(self._pid_of("controller"))
        call("nsenter", "-t", controller, "--net", "ip", "link", "set", f"ve{name[2:]}", state)

    def _address(self, name: str) -> str:
        if self.mode == "plain":
            return "127.0.0.1"
        return f"{NETWORK}.{254 if name == 'controller' else int(name[2:])}"

    def _wait_ready(self, name: str) -> None:
        until(f"{name}'s daemons", (self.folder / f"{name}.ready").exists, 20)

    def _begin(self, name: str) -> None:
        (self.folder / f"{name}.ready").unlink(missing_ok=True)
        node = Path(__file__).with_name("cluster_node.py")
        role = [sys.executable, str(node), name, str(self.folder), self.mode]
        if self.mode == "net":
            role = ["unshare", *(NAMESPACES if name == "controller" else NODE_NAMESPACES), *role]
        # An unshare that forks lets SIGTERM pass by.
        ends_by = "KILL" if self._forks(name) else "TERM"
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", ends_by, *role],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        if self._forks(name):
            until(f"{name} to start", lambda: bool(children(self._processes[name].pid)), 10)

    def _forks(self, name: str) -> bool:
        return self.mode == "net" and name != "controller"

    def _pid_of(self, name: str) -> int:
        pid = self._processes[name].pid
        return children(pid)[0] if self._forks(name) else pid

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        if self._forks(name):
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)  # the first process of its table: all follow
        else:
            process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)

    def _write_settings(self) -> None:
        for part in ("state", "spool", "munge", "devices", "log"):
            (self.folder / part).mkdir(exist_ok=True)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for index in range(8):  # a pretended GPU must be a device: /dev/null's number does
            os.mknod(self.folder / "devices" / f"gpu{index}", 0o20666, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nName=gpu Type=pretended File={self.folder}/devices/gpu[0-7]\n"
        )
        plain = self.mode == "plain"
        host = socket.gethostname().split(".")[0]
        controller = host if plain else "controller"
        names = {"controller": controller, **{name: name for name in self.names}}
        hosts = [f"{self._address(name)} {words} {HOSTS_MARK}" for name, words in names.items()]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        # Without it the daemons would listen on the machine's outside interfaces too.
        loopback = "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
        node = "NodeName={} NodeHostname={} NodeAddr={} Port={} CPUs=8 RealMemory=4000 {}"
        gpus = "Gres=gpu:pretended:8 State=UNKNOWN"
        lines = [
            node.format(n, host if plain else n, self._address(n), PORT + int(n[2:]), gpus)
            for n in self.names
        ]
        settings = SETTINGS.format(
            controller=controller,
            address=self._address("controller"),
            port=PORT,
            folder=self.folder,
            listening=loopback if plain else "",
        )
        head, mark, partitions = settings.partition("PartitionName=")
        (self.folder / "slurm.conf").write_text("\n".join([head, *lines, mark + partitions]))


def _command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _namespace(pid: str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def _hold(num_nodes: int, mode: str) -> None:
    with Cluster(num_nodes, mode) as cluster:
        shown = " ".join(cluster.command("env", f"SLURM_CONF={cluster.folder}/slurm.conf"))
        print(f"mode {cluster.mode}; logs in {cluster.folder}/log; clients, such as sinfo:")
        print(f"  {shown} sinfo", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _hold(int(sys.argv[1]) if sys.argv[1:] else 4, sys.argv[2] if sys.argv[2:] else "auto")
