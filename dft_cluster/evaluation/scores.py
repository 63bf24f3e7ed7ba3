"""From what was said to the figures of a round. All of them are percentages unless they say otherwise."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import harmonic_mean, mean
from typing import Any

from dft_cluster.evaluation.decode import Said
from dft_cluster.evaluation.probes import Asked, Kind, of_kind
from dft_cluster.facts.folding import fold

Figures = dict[str, Any]


def teacher_forced(asked: Sequence[Asked], said: Sequence[Said], before: Sequence[Sequence[int]]) -> Figures:
    """`token`: mean over probes of the share of answer tokens whose argmax is right; `exact`: share of probes with all right.

    For locality, "right" is what round 0 said (`before`, in the order of the locality probes).
    """
    figures: Figures = {}
    for kind, name in _MEASURED:
        places = of_kind(asked, kind)
        if places:
            figures[name] = agreement((said[p].predicted, asked[p].example.answer) for p in places)
    local = of_kind(asked, "locality")
    if local:
        figures["locality"] = agreement(zip((said[p].predicted for p in local), before, strict=True))
    figures["still_old"] = figures.pop("old")["exact"]
    figures["perplexity"] = _perplexity(asked, said)
    return figures


_MEASURED: tuple[tuple[Kind, str], ...] = (
    ("reliability", "reliability"), ("generality", "generality"), ("old", "old"), ("portability", "portability"),
)  # fmt: skip


def by_fact(
    asked: Sequence[Asked], said: Sequence[Said], before: Sequence[Sequence[int]]
) -> dict[str, list[list[float]]]:
    """By kind, for every probe: its fact's number, its share of right tokens, and 1 if all are right."""
    found: dict[str, list[list[float]]] = {}
    rights: dict[str, Iterable[Sequence[int]]] = {"locality": before}
    for kind in ("reliability", "generality", "locality"):
        places = of_kind(asked, kind)
        right = rights.get(kind) or [asked[p].example.answer for p in places]
        found[kind] = [
            [asked[p].fact, share, float(share == 1)]
            for p, share in zip(
                places, _shares(zip((said[p].predicted for p in places), right, strict=True)), strict=True
            )
        ]
    return found


def _shares(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    return [mean(float(a == b) for a, b in zip(said, right, strict=True)) for said, right in pairs]


def agreement(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    shares = _shares(pairs)
    return {"token": percent(shares), "exact": percent([share == 1 for share in shares])}


def percent(values: Sequence[float]) -> float:
    return 100 * mean(float(value) for value in values)


def _perplexity(asked: Sequence[Asked], said: Sequence[Said]) -> float:
    """exp of the mean −log p per token of the held text."""
    places = of_kind(asked, "held")
    tokens = [len(asked[p].example.answer) for p in places]
    mean_nll = sum(said[p].nll * n for p, n in zip(places, tokens, strict=True)) / sum(tokens)
    return math.exp(mean_nll) if mean_nll < 700 else math.inf


def likelihood(asked: Sequence[Asked], said: Sequence[Said]) -> dict[str, float]:
    """CounterFact's scores by length-normalised NLL (Meng et al. 2022).

    ES: the new answer is likelier than the old one, by prompts; PS: by rephrases; NS: the true answer is likelier
    than the new one, by unrelated prompts; S: their harmonic mean.
    """
    found = likelier_by_fact(asked, said)
    figures = {name: percent([won for _, won, _ in rows]) for name, rows in found.items() if rows}
    return figures | {"S": harmonic_mean(list(figures.values()))}


def likelier_by_fact(asked: Sequence[Asked], said: Sequence[Said]) -> dict[str, list[list[float]]]:
    """By score but S, in the form of `by_fact`: its fact's number and, twice, 1 if the wanted answer is the likelier one."""
    found = {}
    for name, (wanted, other) in _LIKELIER.items():
        pairs = zip(of_kind(asked, wanted), of_kind(asked, other), strict=True)
        found[name] = [[asked[a].fact, *2 * [float(said[a].nll < said[b].nll)]] for a, b in pairs]
    return found


_LIKELIER: dict[str, tuple[Kind, Kind]] = {
    "ES": ("reliability", "old"), "PS": ("generality", "old_rephrased"), "NS": ("locality", "new_for_locality"),
}  # fmt: skip


def generated(
    asked: Sequence[Asked],
    texts: Mapping[int, str],
    before: Mapping[int, str],
    matches: Callable[[str, str], bool],
    keys: Sequence[str],
) -> dict[str, float]:
    """Greedy answers by probe place: the new key for reliability and generality, round 0's answer (folded) for locality."""
    figures = {}
    for kind in ("reliability", "generality"):
        places = [p for p in of_kind(asked, kind) if p in texts]
        if places:
            figures[kind] = percent([matches(texts[p], keys[asked[p].fact]) for p in places])
    local = [p for p in of_kind(asked, "locality") if p in texts]
    if local:
        figures["locality"] = percent([fold(texts[p]) == fold(before[p]) for p in local])
    return figures
