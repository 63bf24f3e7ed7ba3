"""Several Ray nodes on one machine, each in a network namespace with an address of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

RAY = str(Path(sys.executable).parent / "ray")
PORT = 6379


def possible() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"dft-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Nodes:
    """A head without CPUs, and as many other nodes as are added, joined by a bridge in the head's namespace."""

    def __init__(self) -> None:
        self._tag = uuid.uuid4().hex[:4]
        self._folder = Path(tempfile.mkdtemp(prefix="dft-net-"))
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._spaces: list[str] = []
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}

    def __enter__(self) -> "Nodes":
        try:
            self._head = self._space()
            _ip("-n", self._head, "link", "add", "bridge0", "type", "bridge")
            _ip("-n", self._head, "addr", "add", "10.77.0.1/24", "dev", "bridge0")
            _ip("-n", self._head, "link", "set", "bridge0", "up")
            self._start(self._head, "--head", f"--port={PORT}", "--node-ip-address=10.77.0.1", "--num-cpus=0",
                        "--include-dashboard=false", f"--temp-dir={self._folder}")  # fmt: skip
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._started):
            self.lose(name)
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _space(self) -> str:
        name = f"dft-{self._tag}-{len(self._spaces)}"
        _ip("netns", "add", name)
        self._spaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")
        return name

    def add(self, cpus: int, without: Path | None = None) -> str:
        """One more node, which has an empty folder in the place of `without`; returns its name."""
        space = self._space()
        number = len(self._spaces)
        inner, outer = f"in{self._tag}{number}", f"out{self._tag}{number}"
        _ip("link", "add", inner, "netns", space, "type", "veth", "peer", "name", outer, "netns", self._head)
        _ip("-n", self._head, "link", "set", outer, "master", "bridge0", "up")
        _ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", inner)
        _ip("-n", space, "link", "set", inner, "up")
        words = (f"--address=10.77.0.1:{PORT}", f"--node-ip-address=10.77.0.{number}", f"--num-cpus={cpus}")
        self._start(space, *words, without=without)
        return space

    def cut(self, name: str) -> None:
        """Takes the node's cable out."""
        _ip("-n", self._head, "link", "set", f"out{self._tag}{int(name.rpartition('-')[2]) + 1}", "down")

    def heal(self, name: str) -> None:
        _ip("-n", self._head, "link", "set", f"out{self._tag}{int(name.rpartition('-')[2]) + 1}", "up")

    def lose(self, name: str) -> None:
        """The node and everything on it is gone."""
        process = self._started.pop(name)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for one in family:
            if one.is_running():
                one.kill()
        process.wait(timeout=30)

    def _start(self, space: str, *words: str, without: Path | None = None) -> None:
        # `ip netns exec` gives mounts of its own, too.
        hiding = ["sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(without)] if without else []
        log = (self._folder / f"{space}.log").open("wb")
        self._started[space] = subprocess.Popen(
            ["ip", "netns", "exec", space, *hiding, RAY, "start", "--block", *words],
            stdout=log, stderr=subprocess.STDOUT, env=self.environment,
        )  # fmt: skip
        until = time.monotonic() + 60
        while b"Ray runtime started" not in (told := (self._folder / f"{space}.log").read_bytes()):
            if time.monotonic() > until or self._started[space].poll() is not None:
                pytest.fail(f"no Ray node came up in {space}: {told.decode()}")
            time.sleep(0.2)

    def driver(self, *words: str, log: Any) -> subprocess.Popen[bytes]:
        """A program on the head."""
        name = f"driver-{len(self._started)}"
        self._started[name] = subprocess.Popen(
            ["ip", "netns", "exec", self._head, *words], stdout=log, stderr=subprocess.STDOUT,
            env={**self.environment, "RAY_ADDRESS": f"10.77.0.1:{PORT}"},
        )  # fmt: skip
        return self._started[name]
