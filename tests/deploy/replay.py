"""Executes an image's steps without a container engine: in a root folder of its own, each step in its own namespaces.

The root is Debian with its Python 3.11, in the place of the base image (Debian with Python 3.11 under /usr/local). Only the
build context is copied in, HOME is empty, and no variable of this shell is seen but pip's (PIP_*) and proxies'. Folders that pip
is told to read (a mirror, certificates) are shown inside by naming them in DFT_REPLAY_SHARE, with colons between.
"""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.dockerfile import ROOT, Step, context, variables

BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = {"http_proxy", "https_proxy", "no_proxy"}
SECONDS = 1800
"""A step that takes longer has lost its network."""

# Mounts are private to a step and gone with it; the last process to end takes all it started with it.
_ENTER = """
mount --make-rprivate /
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/dev/shm"
cat /etc/resolv.conf > "$ROOT/etc/resolv.conf"
for folder in $SHARE; do
    mkdir -p "$ROOT$folder"
    mount --rbind -o ro "$folder" "$ROOT$folder"
done
exec chroot --userspec="$WHO" "$ROOT" env -i "$@"
"""


def base(root: Path) -> None:
    """Debian bookworm and its Python, by its own installer."""
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(root)], check=True, stdout=subprocess.DEVNULL)
    stand_in = Replay(root, {})
    stand_in.sh(
        "apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3.11 python3.11-venv"
    )
    stand_in.sh("ln -s /usr/bin/python3.11 /usr/local/bin/python")


@dataclass
class Replay:
    root: Path
    asked: dict[str, str]
    """Values for the Dockerfile's ARGs in the place of their defaults."""
    context: Path = ROOT
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH, "HOME": "/root"})
    workdir: str = "/"
    user: str = "0:0"
    arguments: dict[str, str] = field(default_factory=dict)
    """What the ARGs are: RUN sees them, the image does not."""

    def run(self, steps: list[Step]) -> None:
        for step in steps:
            match step.word:
                case "ENV":
                    self.environment |= {name: self._filled(value) for name, value in variables(step).items()}
                case "ARG":
                    self.arguments |= {name: self.asked.get(name, value) for name, value in variables(step).items()}
                case "WORKDIR":
                    self.workdir = step.text
                    self._inside(step.text).mkdir(parents=True, exist_ok=True)
                case "USER":
                    self.user = step.text
                case "COPY":
                    self._copy(step)
                case "RUN":
                    self.sh(step.text, self.arguments)
                case _:
                    assert step.word in ("FROM", "HEALTHCHECK", "CMD")

    def sh(self, command: str, more: dict[str, str] | None = None, *, alone: bool = False) -> str:
        """What the command says; `alone`, it has a network of its own with nothing but loopback."""
        outside = {
            name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower() in PROXIES
        }
        inside = outside | (more or {}) | self.environment
        loopback = "ip link set lo up\n" if alone else ""
        entered = subprocess.run(
            [
                "unshare", "--mount", "--pid", "--fork", "--kill-child", *(["--net"] if alone else []),
                "sh", "-ec", loopback + _ENTER, "sh",
                *(f"{name}={value}" for name, value in inside.items()), "/bin/sh", "-ec", f"cd {self.workdir}\n{command}",
            ],
            env={
                "PATH": os.environ["PATH"], "ROOT": str(self.root), "WHO": self.user,
                "SHARE": os.environ.get("DFT_REPLAY_SHARE", "").replace(":", " "),
            },
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert entered.returncode == 0, f"{command}\n{entered.stdout[-3000:]}\n{entered.stderr[-3000:]}"
        return entered.stdout

    def _filled(self, value: str) -> str:
        return value.replace("$PATH", self.environment["PATH"])

    def _inside(self, path: str) -> Path:
        return self.root / (Path(self.workdir) / path).relative_to("/")

    def _copy(self, step: Step) -> None:
        """Of a file: into the folder named. Of a folder: what is in it, as Docker does."""
        *sources, target = shlex.split(step.rest)
        into = self._inside(target)
        seen = list(context(self.context))
        for source in sources:
            found = [name for name in seen if name == source or name.startswith(f"{source}/")]
            assert found, f"COPY {source}: not in the build context"
            for name in found:
                place = into / (Path(name).relative_to(source) if name != source else Path(name).name)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.context / name, place)
        if "chown" in step.flags:
            self.sh(f"chown -R {step.flags['chown']} {shlex.quote(target)}")
