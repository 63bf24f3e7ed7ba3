"""Asks all ranks the run's probes, each its share, and turns what they say into a round's figures."""

from collections.abc import Callable, Sequence
from typing import Any

from dft_cluster.config import Config
from dft_cluster.evaluation import scores
from dft_cluster.evaluation.decode import Said
from dft_cluster.evaluation.probes import Asked, of_kind, probes
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import contains, matches
from dft_cluster.facts.layout import Layout
from dft_cluster.facts.pairs import Line, Pair
from dft_cluster.methods import asking
from dft_cluster.ranks.team import Team

DECODED = ("reliability", "generality", "locality")


class Examiner:
    """The fixed probes of a run. `before` is what round 0 said, against which locality is measured."""

    def __init__(self, config: Config, facts: Sequence[Fact], pairs: Sequence[Pair], layout: Layout) -> None:
        self.config, self.layout, self.pairs = config, layout, list(pairs)
        self._likelihood = "likelihood" in config.evaluate.protocols
        self._decodes = "generated" in config.evaluate.protocols
        self.asked: list[Asked] = probes(facts, pairs, layout, likelihood=self._likelihood)
        self._spoken = [p for kind in DECODED for p in of_kind(self.asked, kind)]  # type: ignore[arg-type]
        self._prompts = [layout.prompt(self.asked[p].prompt) for p in self._spoken]
        self._said: Sequence[Said] = []
        self.before: list[list[int]] = []
        self.said_before: dict[int, str] = {}
        self.own: list[list[int]] = []
        """What the user's own model said of the locality probes, where a warm-up came between."""

    @property
    def protocol(self) -> str:
        """The tag of every teacher-forced figure."""
        train = self.config.train
        return f"teacher-forced, template={train.template}, {train.precision}, all facts after all updates"

    def locality_said(self, team: Team) -> list[list[int]]:
        """The argmax tokens of every locality probe, now."""
        return self._locality(self._ask(team))

    def baseline(self, team: Team) -> dict[str, Any]:
        """Remembers what θ says before the first round, and gives round 0's figures."""
        said = self._ask(team)
        self.before = self._locality(said)
        self.said_before = self.speak(team)
        return self._figures(said) | self.spoken(self.said_before)

    def remembered(self) -> dict[str, Any]:
        return {"before": self.before, "said_before": self.said_before, "own": self.own}

    def remember(self, baseline: dict[str, Any]) -> None:
        self.before, self.own = baseline["before"], baseline["own"]
        self.said_before = {int(place): text for place, text in baseline["said_before"].items()}

    def measure(self, team: Team, *, decode: bool) -> tuple[dict[str, Any], dict[int, str]]:
        """A round's figures, and with `decode` what the model said to the prompts."""
        figures = self._figures(self._ask(team))
        texts = self.speak(team) if decode else {}
        return figures | self.spoken(texts), texts

    def by_fact(self) -> dict[str, list[list[float]]]:
        """Of what was measured last: [fact, share of right tokens, 1 if all are right] for every probe; of a likelihood score
        the one that won, as both."""
        won = scores.likelier_by_fact(self.asked, self._said) if self._likelihood else {}
        return scores.by_fact(self.asked, self._said, self.before) | won

    def _figures(self, said: Sequence[Said]) -> dict[str, Any]:
        self._said = said
        figures = scores.teacher_forced(self.asked, said, self.before)
        if self.own:
            figures["locality_of_model"] = scores.agreement(zip(self._locality(said), self.own, strict=True))
        figures["protocol"] = self.protocol
        if self._likelihood:
            figures["likelihood"] = scores.likelihood(self.asked, said)
        return figures

    def speak(self, team: Team) -> dict[int, str]:
        """What the model answers freely, by probe; nothing where the generated protocol is off."""
        return self._speak(team) if self._decodes else {}

    def spoken(self, texts: dict[int, str]) -> dict[str, Any]:
        """The figures of the generated protocol, with its tag."""
        if not texts:
            return {}
        figures: dict[str, Any] = dict(
            scores.generated(self.asked, texts, self.said_before, self._match, [p.key_new for p in self.pairs])
        )
        figures["protocol"] = (
            f"greedy, max_new_tokens={self.config.evaluate.max_new_tokens}, template={self.config.train.template}, "
            f"match={'containment' if self._match is contains else 'equality'} of folded text"
        )
        return {"generated": figures}

    @property
    def _match(self) -> Callable[[str, str], bool]:
        return contains if self.config.facts.old == "generated" else matches

    def sentences(self, team: Team, prompts: Sequence[str], most: int) -> list[Line]:
        """What the model itself answers, greedily, to any prompts."""
        return self._decode(team, [self.layout.prompt(p) for p in prompts], most)

    def right(self, team: Team) -> float:
        """How many training prompts get all of their new answer, teacher-forced, in percent."""
        examples = [self.asked[p].example for p in of_kind(self.asked, "reliability")]
        said = asking.forced(team, examples, self.config.evaluate.batch, self.layout.pad)
        return scores.percent([one.predicted == e.answer for one, e in zip(said, examples, strict=True)])

    def answers(self, after: dict[int, str]) -> list[dict[str, str]]:
        """Before and after, prompt by prompt, for a person to read."""
        places = [p for p in of_kind(self.asked, "reliability") if p in after]
        return [
            {
                "prompt": self.asked[p].prompt,
                "old": self.pairs[self.asked[p].fact].key_old,
                "new": self.pairs[self.asked[p].fact].key_new,
                "before": self.said_before.get(p, ""),
                "after": after[p],
            }
            for p in places
        ]

    def _ask(self, team: Team) -> list[Said]:
        return asking.forced(team, [a.example for a in self.asked], self.config.evaluate.batch, self.layout.pad)

    def _speak(self, team: Team) -> dict[int, str]:
        said = self._decode(team, self._prompts, self.config.evaluate.max_new_tokens)
        return {place: line.text for place, line in zip(self._spoken, said, strict=True)}

    def _decode(self, team: Team, prompts: Sequence[tuple[int, ...]], most: int) -> list[Line]:
        return asking.lines(team, prompts, self.config.evaluate.batch, self.layout, most)

    def _locality(self, said: Sequence[Said]) -> list[list[int]]:
        return [list(said[p].predicted) for p in of_kind(self.asked, "locality")]
