"""A real Slurm on this machine: munge, slurmctld and slurmd with all their files in one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
SECONDS = 60.0


def missing() -> str:
    """Why no cluster can be had here, or nothing."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if all(map(shutil.which, PROGRAMS)):
        return ""
    if shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "slurm-wlm", "munge"]):
        done = subprocess.run(
            ["apt-get", *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"apt-get {' '.join(words)} failed: {done.stderr.strip().splitlines()[-1:]}"
    return "" if all(map(shutil.which, PROGRAMS)) else "slurm-wlm brought no slurmctld"


@contextmanager
def slurm_cluster(folder: Path, *, cpus: int = 2) -> Iterator[dict[str, str]]:
    """One node, one partition; yields the environment in which Slurm's commands find it."""
    folder.chmod(0o755)
    daemons = [_munge(folder)]
    try:
        conf = folder / "slurm.conf"
        conf.write_text(_configuration(folder, cpus), encoding="utf-8")
        environment = {**os.environ, "SLURM_CONF": str(conf)}
        for name in ("slurmctld", "slurmd"):
            log = (folder / f"{name}.out").open("wb")
            daemons.append(
                subprocess.Popen(
                    [name, "-D", "-f", str(conf)], stdout=log, stderr=subprocess.STDOUT, env=environment
                )
            )
            log.close()
        _until(lambda: "idle" in _output(["sinfo", "--noheader", "-o", "%T"], environment), folder)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _munge(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    log = (folder / "munged.out").open("wb")
    daemon = subprocess.Popen(
        [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={folder / 'munge.socket'}",
            f"--pid-file={folder / 'munged.pid'}",
            f"--log-file={folder / 'munged.log'}",
            f"--seed-file={folder / 'munged.seed'}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    log.close()
    _until(lambda: (folder / "munge.socket").exists(), folder)
    return daemon


def _configuration(folder: Path, cpus: int) -> str:
    host, ports = socket.gethostname(), [_free_port(), _free_port()]
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    return f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder / "munge.socket"}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
StateSaveLocation={folder / "state"}
SlurmdSpoolDir={folder / "spool"}
SlurmctldPidFile={folder / "slurmctld.pid"}
SlurmdPidFile={folder / "slurmd.pid"}
SlurmctldLogFile={folder / "slurmctld.log"}
SlurmdLogFile={folder / "slurmd.log"}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def _until(holds: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            files = [*sorted(folder.glob("*.out")), *sorted(folder.glob("*.log"))]
            logs = [f"{path.name}: {path.read_text(errors='replace')[-800:]}" for path in files]
            raise AssertionError("Slurm did not start:\n" + "\n".join(logs))
        time.sleep(0.2)
