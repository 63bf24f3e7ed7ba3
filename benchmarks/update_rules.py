"""What could be added to θ, tried widely: every rule on the same two deltas, on facts that no table reports.

    python -m benchmarks.update_rules zsre|counterfact SET OUT.csv --path FACTS [--parts one,rounds,kept] [--model FOLDER]

Plain torch on one device: fp32 masters and bf16 working weights, AdamW, the whole set in a step, clipped at 1; the warm-up of
the tables before it. SET is the n-th hundred of the facts that a comparison of the same file may choose settings on. The cut is
read off a sample of four million elements. `one`: rules on the deltas of one round; `rounds`: round after round; `kept`: texts
that the model says, as a third delta or in the training set.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import cross_entropy

from dft_cluster.comparison.settings import ReportSettings, SearchSettings
from dft_cluster.comparison.split import split
from dft_cluster.config import ModelSettings
from dft_cluster.config_file import validate
from dft_cluster.evaluation.decode import greedy, sampled
from dft_cluster.evaluation.probes import probes
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.layout import Example, Layout
from dft_cluster.facts.pairs import given
from dft_cluster.methods.prepare import read_facts
from dft_cluster.methods.training_set import OPENINGS
from dft_cluster.models.source import resolve
from dft_cluster.training.batches import Batch, collate, shuffled
from dft_cluster.training.losses import answer_logits

KINDS = ("reliability", "generality", "locality", "old")
WHAT = ("train", "lr", "epochs", "rule", "mask", "by", "top", "scale", "rest", "outside", "round")
Figures = dict[str, float]


@dataclass(frozen=True)
class Rule:
    """scale·Δnew at the core (the share `top` of all elements with the highest score), rest·Δnew at other elements that have a
    score, outside·Δnew at those that have none. `add`: `difference` adds scale·(Δnew − Δold) at the core; `soft` multiplies
    Δnew by scale·(|Δnew − Δold| / (|Δnew| + |Δold|))^top."""

    mask: str
    by: str
    top: float
    scale: float
    rest: float = 0.0
    outside: float = 0.0
    add: str = "new"

    @property
    def name(self) -> str:
        return {"new": "dft" if self.mask == "conflict" else "control"}.get(self.add, self.add)


def rules() -> Iterator[Rule]:
    around = ((0.35, 0.35), (0.5, 0.5), (0.5, 0.25), (0.6, 0.3), (0.7, 0.5))
    for top, scales in ((0.02, (2.5, 3.5)), (0.05, (2.0, 2.5, 3.0)), (0.1, (1.5, 2.0)), (0.2, (1.5,))):
        for scale, (rest, outside) in product(scales, around):
            yield Rule("conflict", "new", top, scale, rest, outside)
    for top, scale in ((0.05, 3.0), (0.1, 2.0), (0.1, 3.0), (0.2, 2.0), (0.4, 1.0), (0.4, 2.0)):
        yield Rule("conflict", "difference", top, scale)
    for rest in (0.35, 0.5):
        yield Rule("conflict", "difference", 0.05, 2.5, rest, rest)
    for top, scale, rest in product((0.05, 0.1), (1.5, 2.0, 2.5), (0.3, 0.4, 0.5)):
        yield Rule("new", "", top, scale, rest, rest)
    yield from (Rule("new", "", top, scale) for top, scale in ((0.1, 1.5), (0.2, 1.2), (0.4, 1.0)))
    yield from (Rule("same", "new", 0.05, 2.5, rest, out) for rest, out in ((0.35, 0.35), (0.5, 0.5), (0.5, 0.25)))
    yield from (
        Rule("conflict", "", power, scale, add="soft")
        for power, scale in ((0.5, 1.0), (1.0, 1.0), (1.0, 1.5), (2.0, 1.5))
    )
    for top, scale, rest in ((0.1, 0.5, 0.5), (0.1, 1.0, 0.5), (0.2, 1.0, 0.0), (0.4, 0.7, 0.0)):
        yield Rule("conflict", "difference", top, scale, rest, rest, add="difference")


class Weights:
    """A model whose weights and gradients lie in one row each: adding to θ is one line."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        self.device = device
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
        named = dict(self.model.named_parameters())
        self.size = sum(p.numel() for p in named.values())
        self.working, self.gradient = (torch.zeros(self.size, dtype=torch.bfloat16, device=device) for _ in range(2))
        self.master = torch.empty(self.size, device=device)
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        place = 0
        for name, weight in named.items():
            span = slice(place, place + weight.numel())
            [values] = [file.get_tensor(name) for file in files if name in file.keys()]  # noqa: SIM118
            self.master[span] = values.float().flatten().to(device)
            weight.data, weight.grad = (row[span].view(weight.shape) for row in (self.working, self.gradient))
            place = span.stop
        self.set(self.master)
        drawn = torch.Generator(device).manual_seed(1)
        self.sample = torch.randint(0, self.size, (min(4_000_000, 2 * self.size),), device=device, generator=drawn)

    def set(self, theta: Tensor) -> None:
        self.working.copy_(theta)

    def batches(self, examples: Sequence[Example], tokens: int = 20_000) -> list[tuple[list[int], Batch]]:
        parts: list[list[int]] = [[]]
        for place in sorted(range(len(examples)), key=lambda p: len(examples[p].ids)):
            if parts[-1] and (len(parts[-1]) + 1) * len(examples[place].ids) > tokens:
                parts.append([])
            parts[-1].append(place)
        return [(part, collate([examples[p] for p in part], 0).to(self.device)) for part in parts]

    def learn(
        self, theta: Tensor, examples: Sequence[Example], lr: float, epochs: int, batch: int, round_: int
    ) -> Iterator[Tensor]:
        """What each epoch of a fresh AdamW has changed by then."""
        self.master.copy_(theta)
        self.set(theta)
        mean, square = torch.zeros_like(self.master), torch.zeros_like(self.master)
        step = 0
        for epoch in range(epochs):
            self.model.train()
            order = shuffled(len(examples), 0, round_, epoch)
            for first in range(0, len(order), batch):
                chosen, step = [examples[i] for i in order[first : first + batch]], step + 1
                self.gradient.zero_()
                for _, part in self.batches(chosen):
                    nll = cross_entropy(answer_logits(self.model, part), part.targets, reduction="sum")
                    (nll / sum(e.targets for e in chosen)).backward()
                found = self.gradient.float()
                found.mul_(min(1.0, 1.0 / (float(found.norm()) + 1e-6)))
                mean.lerp_(found, 0.1)
                square.mul_(0.999).addcmul_(found, found, value=0.001)
                root = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
                self.master.addcdiv_(mean, root, value=-lr / (1 - 0.9**step))
                self.set(self.master)
            yield self.master - theta

    def threshold(self, score: Tensor, top: float) -> float:
        """Above it lies about the share `top` of all elements."""
        if top == 1:
            return 0.0
        ordered = score[self.sample].sort(descending=True).values
        return max(float(ordered[int(top * len(ordered))]), 1e-45)


class Exam:
    """A hundred facts: what is taught, what is asked, and the rows that come out."""

    def __init__(self, weights: Weights, layout: Layout, facts: Sequence[Fact], labels: dict[str, Any]) -> None:
        self.weights, self.layout, self.labels, self.rows = weights, layout, labels, list[dict[str, Any]]()
        pairs, device = given(facts), weights.device
        self.old, self.new = ([layout.example(p.prompt, getattr(p, side)) for p in pairs] for side in ("old", "new"))
        asked = [a for a in probes(facts, pairs, layout) if a.kind in KINDS]
        self._batches = weights.batches([a.example for a in asked])
        self._probe = torch.tensor(
            [p for part, _ in self._batches for p in part for _ in range(asked[p].example.targets)]
        )
        self._probe = self._probe.to(device)
        self._kind = torch.tensor([KINDS.index(a.kind) for a in asked], device=device)
        self._targets = torch.cat([batch.targets for _, batch in self._batches])
        *_, learnt = weights.learn(weights.master.clone(), self.old, 5e-5, 3, 8, 0)
        self.theta = weights.master.clone()
        del learnt
        self._before = self._targets
        self._before = self._say()

    @torch.no_grad()
    def _say(self) -> Tensor:
        self.weights.model.eval()
        return torch.cat([answer_logits(self.weights.model, batch).argmax(-1) for _, batch in self._batches])

    def measure(self, theta: Tensor) -> Figures:
        self.weights.set(theta)
        expected = torch.where(self._kind[self._probe] == KINDS.index("locality"), self._before, self._targets)
        right, blank = (self._say() == expected).float(), torch.zeros_like(self._kind, dtype=torch.float)
        share = blank.index_add(0, self._probe, right) / torch.bincount(self._probe, minlength=len(blank))
        count = torch.bincount(self._kind, minlength=len(KINDS))
        token, exact = (
            (100 * torch.zeros(len(KINDS), device=blank.device).index_add(0, self._kind, one) / count).tolist()
            for one in (share, (share > 0.9999).float())
        )
        return {k: v for i, kind in enumerate(KINDS) for k, v in ((kind, token[i]), (f"{kind}_exact", exact[i]))}

    def note(self, theta: Tensor, **what: Any) -> Figures:
        found = self.measure(theta)
        self.rows.append(self.labels | what | {name: round(value, 2) for name, value in found.items()})
        return found

    def epochs(
        self, examples: Sequence[Example], lr: float, wanted: Iterable[int], told: dict[str, Any]
    ) -> dict[int, Tensor]:
        """Δnew after the epochs that are wanted; with `told` each epoch is measured as plain fine-tuning."""
        found, wanted = {}, set(wanted)
        for epoch, delta in enumerate(self.weights.learn(self.theta, examples, lr, max(wanted), 1024, 1), 1):
            if told:
                self.note(self.theta + delta, rule="full", epochs=epoch, lr=lr, **told)
            if epoch in wanted:
                found[epoch] = delta
        return found

    def update(self, rule: Rule, new: Tensor, old: Tensor, scores: dict[tuple[str, str], Tensor]) -> Tensor:
        if rule.add == "soft":
            return new * ((new - old).abs() / (new.abs() + old.abs() + 1e-20)).pow(rule.top) * rule.scale
        score = scores[rule.mask, rule.by]
        core = score >= self.weights.threshold(score, rule.top)
        if rule.add == "difference":
            rest = torch.where(scores["conflict", "difference"] > 0, rule.rest, rule.outside)
            return torch.where(core, rule.scale * (new - old), new * rest)
        return new * torch.where(core, rule.scale, torch.where(score > 0, rule.rest, rule.outside))


def scored(new: Tensor, old: Tensor) -> dict[tuple[str, str], Tensor]:
    """What ranks elements: by (mask, by)."""
    signs = torch.sign(new) * torch.sign(old)
    return {
        ("conflict", "new"): new.abs() * (signs < 0),
        ("conflict", "difference"): (new - old).abs() * (signs < 0),
        ("new", ""): new.abs(),
        ("same", "new"): new.abs() * (signs > 0),
    }


def one(exam: Exam) -> None:
    for lr, wanted in ((1e-4, (8, 12)), (2e-4, (4, 6, 8))):
        new = exam.epochs(exam.new, lr, wanted, {"train": "plain"})
        old = exam.epochs(exam.old, lr, wanted[:2], {})
        for epochs, delta in old.items():
            told = {"train": "plain", "lr": lr, "epochs": epochs}
            for alpha in (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1.15):
                exam.note(exam.theta + alpha * new[epochs], rule="interpolate", scale=alpha, **told)
            scores = scored(new[epochs], delta)
            for rule in rules():
                what = {name: getattr(rule, name) for name in ("mask", "by", "top", "scale", "rest", "outside")}
                update = exam.update(rule, new[epochs], delta, scores)
                exam.note(exam.theta + update, rule=rule.name, **what, **told)


def rounds(exam: Exam) -> None:
    tried = [
        Rule("conflict", "difference", 0.1, 2.0), Rule("conflict", "new", 0.05, 2.5, 0.5, 0.3),
        Rule("conflict", "new", 0.1, 2.0, 0.5, 0.35), Rule("new", "", 0.1, 2.0, 0.4, 0.4),
        Rule("conflict", "new", 0.5, 2.0), Rule("new", "", 1.0, 0.8),
    ]  # fmt: skip
    for (lr, epochs, most), rule in product(((1e-4, 2, 6), (2e-4, 1, 6), (1e-4, 4, 4), (2e-4, 2, 4)), tried):
        theta = exam.theta.clone()
        for number in range(1, most + 1):
            (*_, new), (*_, old) = (
                exam.weights.learn(theta, side, lr, epochs, 1024, number) for side in (exam.new, exam.old)
            )
            theta += exam.update(rule, new, old, scored(new, old))
            what = {name: getattr(rule, name) for name in ("mask", "by", "top", "scale", "rest", "outside")}
            name = "interpolate" if rule.top == 1 else rule.name
            if (
                exam.note(theta, rule=name, train="plain", lr=lr, epochs=epochs, round=number, **what)["reliability"]
                > 99.7
            ):
                break


def kept(exam: Exam, others: Sequence[Fact]) -> None:
    """What the model itself says: to other facts' prompts, and after an opening word."""
    weights, layout, lr, epochs = exam.weights, exam.layout, 1e-4, 8
    weights.set(exam.theta)
    weights.model.eval()
    asked = [layout.prompt(fact.prompt) for fact in others]
    said = [a for p in range(0, len(asked), 25)
            for a in greedy(weights.model, asked[p : p + 25], 0, weights.device, 4, layout.ends, False)]  # fmt: skip
    begun = [layout.prompt(OPENINGS[i % len(OPENINGS)]) for i in range(64)]
    texts = {
        "answers": [Example((*p, *a), len(p), len(p) + len(a)) for p, a in zip(asked, said, strict=True) if a],
        "texts": [Example(tuple(t), 1, len(t)) for t in sampled(weights.model, begun, 0, weights.device, 12, 5, None)],
    }
    new = exam.epochs(exam.new, lr, [epochs], {})[epochs]
    told = {"lr": lr, "epochs": epochs}
    _beside(exam, new, "plain", told)
    for name, keep in texts.items():
        third = exam.epochs(keep, lr, [epochs], {})[epochs]
        against = torch.sign(new) * torch.sign(third) < 0
        for scale, inside in ((1.0, 0.0), (1.0, 0.3), (1.0, 0.5), (1.3, 0.3), (0.7, 0.4), (0.9, 0.4)):
            update = new * torch.where(against, inside, scale)
            exam.note(exam.theta + update, rule="third", by=name, scale=scale, outside=inside, **told)
        cut = weights.threshold(new.abs() * ~against, 0.1)
        for scale, rest, inside in ((2.0, 0.4, 0.4), (2.0, 0.5, 0.25), (2.5, 0.4, 0.2)):
            core = (new.abs() >= cut) & ~against
            update = new * torch.where(core, scale, torch.where(against, inside, rest))
            exam.note(
                exam.theta + update, rule="third", by=name, top=0.1, scale=scale, rest=rest, outside=inside, **told
            )
        _beside(exam, exam.epochs(exam.new + keep, lr, [epochs], {})[epochs], f"new and {name}", told)


def _beside(exam: Exam, new: Tensor, train: str, told: dict[str, Any]) -> None:
    for alpha in (0.6, 0.7, 0.8, 1.0):
        exam.note(exam.theta + alpha * new, rule="interpolate", train=train, scale=alpha, **told)
    rule = Rule("new", "", 0.1, 2.0, 0.4, 0.4)
    update = exam.update(rule, new, new, scored(new, new))
    exam.note(exam.theta + update, rule="control", mask="new", train=train, top=0.1, scale=2.0, rest=0.4, **told)


def main() -> None:
    from transformers import AutoTokenizer

    asking = argparse.ArgumentParser()
    asking.add_argument("data", choices=("zsre", "counterfact"))
    asking.add_argument("set", type=int)
    asking.add_argument("out", type=Path)
    asking.add_argument("--path", required=True)
    asking.add_argument("--parts", default="one")
    asking.add_argument("--model", default="smollm2-135m")
    asking.add_argument("--facts", type=int, default=100)
    asked = asking.parse_args()
    rich = {"rephrases": 2, "locality": 10} if asked.data == "counterfact" else {}
    facts, _ = read_facts(validate({"facts": {"path": asked.path}}))
    search = SearchSettings(facts=400, over={"dft": {"train.lr": [1e-4]}})
    free = split(facts, ReportSettings(facts=100, **rich), search).development
    chosen = free[100 * asked.set :][: asked.facts]
    folder = resolve(ModelSettings(name=asked.model))
    layout = Layout(AutoTokenizer.from_pretrained(folder), eos=False)
    weights = Weights(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    exam = Exam(weights, layout, chosen, {"data": asked.data, "set": asked.set})
    exam.note(exam.theta, rule="original")
    parts = {
        "one": lambda: one(exam),
        "rounds": lambda: rounds(exam),
        "kept": lambda: kept(exam, free[300:][: asked.facts]),
    }
    for part in asked.parts.split(","):
        parts[part]()
    with asked.out.open("w", newline="") as stream:
        figures = [f"{kind}{end}" for kind in KINDS for end in ("", "_exact")]
        rows = csv.DictWriter(stream, ["data", "set", *WHAT, *figures], lineterminator="\n")
        rows.writeheader()
        rows.writerows(exam.rows)


if __name__ == "__main__":
    main()
