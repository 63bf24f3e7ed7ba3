"""Asks all ranks at once, each its share of fixed batches, and puts the answers back into the order of the questions."""

from collections.abc import Sequence

from dft_cluster.evaluation.decode import Said
from dft_cluster.evaluation.probes import batched, dealt, gathered
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.facts.pairs import Line
from dft_cluster.ranks.rank import Rank
from dft_cluster.ranks.team import Team


def forced(team: Team, examples: Sequence[Example], size: int, pad: int) -> list[Said]:
    """Teacher-forced outcomes, `size` examples in a forward pass."""
    batches = batched(examples, size, lambda example: len(example.ids))
    shares = dealt([[examples[p] for p in batch] for batch in batches], team.everyone.size)
    return gathered(batches, team.everyone.each(Rank.predict, [(share, pad) for share in shares]))


def continued(
    team: Team, prompts: Sequence[tuple[int, ...]], size: int, layout: Layout, most: int
) -> list[tuple[int, ...]]:
    """Greedy continuations up to the end of a line, of at most so many tokens."""
    batches = batched(prompts, size, len)
    shares = dealt([[prompts[p] for p in batch] for batch in batches], team.everyone.size)
    return gathered(batches, team.everyone.each(Rank.generate, [(s, layout.pad, most, layout.ends) for s in shares]))


def lines(team: Team, prompts: Sequence[tuple[int, ...]], size: int, layout: Layout, most: int) -> list[Line]:
    """The same as text."""
    return [
        Line(layout.line(ids), len(ids) < most or layout.holds_a_line(ids))
        for ids in continued(team, prompts, size, layout, most)
    ]
