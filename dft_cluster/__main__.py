"""`python -m dft_cluster WORD …`: the commands that need no cluster."""

import argparse
import sys

from dft_cluster.errors import InputError
from dft_cluster.patch import cli as patch
from dft_cluster.patch.inspect import printable


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dft_cluster", description="Change what a language model knows.")
    words = parser.add_subparsers(required=True, metavar="WORD")
    patch.add_to(words.add_parser("patch", help="check, apply, take back and combine knowledge patches"))
    given = parser.parse_args(arguments)
    try:
        status: int = given.run(given)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
