"""`python -m dft_cluster patch …`: the patch's functions as commands.

Exit codes: 0 done; 1 `verify` finds a folder to be neither; 2 something given is wrong, nothing was written.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from dft_cluster.patch.apply import apply, revert
from dft_cluster.patch.compose import compose
from dft_cluster.patch.inspect import inspect, lines, printable
from dft_cluster.patch.make import diff
from dft_cluster.patch.merge import RULES
from dft_cluster.patch.plot import plot
from dft_cluster.patch.verify import verify
from dft_cluster.patch.writer import PatchSummary


def add_to(parser: argparse.ArgumentParser) -> None:
    """The patch's commands as sub-commands; each leaves its function in `run`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("inspect", help="what a patch holds, where it comes from and what it lies on")
    command.add_argument("patch", type=Path, metavar="PATCH")
    command.add_argument("--plot", type=Path, metavar="SVG", help="draw where it lands into this file")
    command.add_argument("--json", action="store_true", help="print it as JSON")
    command.set_defaults(run=_inspect)

    for name, run, text in (
        ("apply", _apply, "write the folder DIR: the base with the patch in it"),
        (
            "revert",
            _revert,
            "write the folder DIR: the patched model without the patch, bit for bit the base",
        ),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("patch", type=Path, metavar="PATCH")
        command.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="it is only read")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or an empty folder")
        command.set_defaults(run=run)

    command = commands.add_parser("verify", help="is a folder the base, the patched model, or neither?")
    command.add_argument("patch", type=Path, metavar="PATCH")
    command.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    command.set_defaults(run=_verify)

    command = commands.add_parser("diff", help="make the patch that turns one model folder into another")
    command.add_argument("base", type=Path, metavar="BASE")
    command.add_argument("other", type=Path, metavar="OTHER")
    command.add_argument("--out", type=Path, required=True, metavar="PATCH")
    command.add_argument("--no-old-bits", action="store_true", help="smaller, but it cannot be reverted")
    command.set_defaults(run=_diff)

    command = commands.add_parser("compose", help="make one patch out of several")
    command.add_argument("patches", type=Path, nargs="+", metavar="PATCH")
    command.add_argument("--out", type=Path, required=True, metavar="PATCH")
    command.add_argument("--rule", choices=RULES, help="what to do where patches of one base do not agree")
    command.add_argument("--chain", action="store_true", help="fold a stack, given from the lowest up")
    command.add_argument("--model", type=Path, metavar="BASE", help="the base, where the patches do not suffice")
    command.set_defaults(run=_compose)


def _inspect(given: argparse.Namespace) -> int:
    seen = inspect(given.patch)
    if given.plot is not None:
        plot(seen, given.plot)
    if given.json:
        fields = asdict(seen) | {"path": str(seen.path)}
        fields["grid"] = [{"layer": layer, "kind": kind, **asdict(count)} for (layer, kind), count in seen.grid.items()]
        print(json.dumps(fields, indent=2))
    else:
        print("\n".join(lines(seen)))
    return 0


def _apply(given: argparse.Namespace) -> int:
    print(f"{given.out} is {apply(given.patch, given.model, given.out)}")
    return 0


def _revert(given: argparse.Namespace) -> int:
    print(f"{given.out} is {revert(given.patch, given.model, given.out)}")
    return 0


def _verify(given: argparse.Namespace) -> int:
    verdict = verify(given.patch, given.model)
    print(f"{given.model} is {'neither base nor patched' if verdict.state == 'neither' else verdict.state}")
    print(f"fingerprint {verdict.fingerprint}")
    print(f"first tensor unlike the base: {printable(verdict.unlike_base or 'none')}")
    print(f"first tensor unlike the patched model: {printable(verdict.unlike_patched or 'none')}")
    if verdict.detail:
        print(printable(verdict.detail))
    return 1 if verdict.state == "neither" else 0


def _diff(given: argparse.Namespace) -> int:
    _report(diff(given.base, given.other, given.out, old_bits=not given.no_old_bits))
    return 0


def _compose(given: argparse.Namespace) -> int:
    _report(compose(given.patches, given.out, given.rule, given.chain, given.model))
    return 0


def _report(made: PatchSummary) -> None:
    print(f"{made.path}: {made.size} bytes, {made.changed} of {made.elements} elements, {made.tensors} tensors")
    print(f"base   {made.base_fingerprint}\nresult {made.result_fingerprint or 'not known without the base'}")
