"""ROME one fact at a time: edited, scored, and the weights put back before the next.

    python -m benchmarks.rome_singly CONFIG.yaml [section.key=value …]

prints every fact's outcome and the shares at the end: exact reliability (all tokens of the new answer), token generality, and
token locality against the model before.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import mean

from dft_cluster.config_file import load
from dft_cluster.evaluation.decode import Said
from dft_cluster.evaluation.probes import Asked, batched, gathered, of_kind, probes
from dft_cluster.evaluation.scores import by_fact
from dft_cluster.facts.pairs import given
from dft_cluster.local import in_this_process
from dft_cluster.methods.prepare import prepare
from dft_cluster.ranks.local import LocalTeam
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.runs.console import Console


def said(team: LocalTeam, asked: Sequence[Asked], dealt: list[list[int]], places: Iterable[int]) -> list[Said]:
    """What the model says to the probes at these places."""
    told = team.everyone.call(Rank.predict, [[asked[p].example for p in batch] for batch in dealt], 0)
    answers = gathered(dealt, told)
    return [answers[place] for place in places]


def main(arguments: list[str]) -> None:
    config = load(arguments[0], [*arguments[1:], "method.name=rome"])
    prepared = prepare(config)
    source = Source(config.model)
    exact, rephrased, kept = [], [], []
    with in_this_process(prepared.seat(1), source, Console()) as team:
        for number, fact in enumerate(prepared.facts):
            asked = probes([fact], given([fact]), prepared.layout)
            dealt = batched(asked, 32, lambda one: len(one.example.ids))
            before = [list(one.predicted) for one in said(team, asked, dealt, of_kind(asked, "locality"))]
            job = replace(prepared.seat(1).job(source), facts=[fact], say=lambda _: None)
            prepared.method.round(team, job, 1)
            found = by_fact(asked, said(team, asked, dealt, range(len(asked))), before)
            team.everyone.call(Rank.load, source)
            exact.append(found["reliability"][0][2])
            rephrased += [share for _, share, _ in found["generality"]]
            kept += [share for _, share, _ in found["locality"]]
            print(f"{number} [{fact.id}] {'exact' if exact[-1] else 'missed'}", flush=True)
    print(f"{len(exact)} facts one at a time: {100 * mean(exact):.1f} % exact, generality {100 * mean(rephrased):.1f}, "
          f"locality {100 * mean(kept):.1f} (token)")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
