"""The knowledge patch: what changed in a model, as a small file to check, apply, take back and combine."""

from dft_cluster.patch.apply import apply, revert
from dft_cluster.patch.compose import compose
from dft_cluster.patch.fingerprint import fingerprint
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.inspect import Inspection, inspect
from dft_cluster.patch.live import patched
from dft_cluster.patch.make import diff, make
from dft_cluster.patch.reader import Patch
from dft_cluster.patch.verify import Verdict, verify
from dft_cluster.patch.writer import PatchSummary

__all__ = [
    "Folder",
    "Inspection",
    "Patch",
    "PatchSummary",
    "Verdict",
    "apply",
    "compose",
    "diff",
    "fingerprint",
    "inspect",
    "make",
    "patched",
    "revert",
    "verify",
]
