"""What a cluster can do, tried on it: every part that a run needs, with a word on what to do where one fails.

The ranks are placed as the config says (groups, ranks_per_group, gpus_per_rank), and train a tiny random model of two layers.
"""

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from dft_cluster.cluster.actors import ActorTeam
from dft_cluster.cluster.command import FAILED, OK, checked, parser
from dft_cluster.cluster.job import ready
from dft_cluster.cluster.launch import connect, ranks_on, room, settled
from dft_cluster.cluster.tried import Tried, TriedActor
from dft_cluster.config import Config, TrainSettings
from dft_cluster.config_file import load
from dft_cluster.facts.layout import Example
from dft_cluster.models.structure import Parameter, parameters
from dft_cluster.ranks.assemble import assemble
from dft_cluster.ranks.rank import Rank, Source
from dft_cluster.ranks.shared import blind
from dft_cluster.ranks.team import LostRankError
from dft_cluster.runs.console import Console
from dft_cluster.runs.storage import Storage
from dft_cluster.runs.track import Tracker
from dft_cluster.training.batches import steps

NAME = "selftest"
EXAMPLES = [Example(tuple(range(i, i + 12)), 8, 12) for i in range(1, 9)]
ROUNDING = 2e-4
"""How far two orders of addition take θ apart in these few steps."""
LONGEST = 60.0
"""Seconds for what a healthy cluster does in a few; a run's own limits are made for large models."""


@dataclass(frozen=True)
class Check:
    """One line of the table; `advice` where it failed."""

    name: str
    told: str
    advice: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """`CONFIG.yaml [section.key=value …]`: 0 if all is well, 1 if something is not."""
    asked = parser(
        "Looks at your own cluster.", "jobs/configs/ (cluster, run and track are read)"
    ).parse_intermixed_args(arguments)
    return checked(lambda: _told(ready(load(asked.config, asked.overrides))))


def _told(config: Config) -> int:
    """The table, line by line as it comes, and the exit code."""
    code = OK
    for one in tried(config, Console()):
        print(f"{'not ok' if one.advice else 'ok':8}{one.name:32}{one.told}", flush=True)
        if one.advice:
            print(f"{'':8}{'':32}→ {one.advice}", flush=True)
            code = FAILED
    return code


def check(name: str, work: Callable[[], str], advice: str) -> Check:
    try:
        return Check(name, work())
    except Exception as error:
        return _failed(name, error, advice)


def _failed(name: str, error: Exception, advice: str) -> Check:
    return Check(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", advice)


def tried(config: Config, console: Console) -> Iterator[Check]:
    """Every part in turn."""
    cluster = config.cluster
    soon = {"timeout": min(cluster.timeout, LONGEST), "hang": min(cluster.hang, LONGEST)}
    config = config.model_copy(update={"cluster": cluster.model_copy(update=soon)})
    connect(config, console)
    nodes = sum(node["Alive"] for node in ray.nodes())
    yield Check("cluster", f"{nodes} node(s), {ray.cluster_resources().get('GPU', 0):g} GPU, Ray {ray.__version__}")
    with tempfile.TemporaryDirectory(prefix="dft-") as scratch:
        trial = _Trial(config, Path(scratch), console)
        try:
            for stage in (1, 2, 3):
                try:
                    yield from trial.of_stage(stage)
                except LostRankError as lost:
                    yield _failed(
                        f"ZeRO-{stage}: ranks", lost, "the ranks' own logs, below Ray's session folder, say why"
                    )
                    break  # others would be lost alike
            yield check(
                "W&B", trial.wandb, "a key by cluster.secrets or in the nodes' environment, or track.wandb=offline"
            )
        finally:
            with suppress(OSError):  # what is wrong with the storage has been told
                trial.storage.remove("")


class _Trial:
    """A tiny model in the run's storage, and ranks that train it."""

    def __init__(self, config: Config, scratch: Path, console: Console) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.config, notes = settled(config)
        self.scratch, self.console = scratch, console
        # No run can bear such a name, so nobody's run is taken for it and removed.
        self.storage = Storage(config.run.dir).below(f".{NAME}-{uuid.uuid4().hex[:8]}")
        ranks = config.cluster.ranks_per_group
        self.groups, self.ranks, self.need, more = room(self.config, self.config.groups, ranks, console)
        self.notes = [*notes, *more]
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.2,
        )  # fmt: skip
        self.model = scratch / "model"
        LlamaForCausalLM(shape).save_pretrained(self.model)
        self.weights: list[Parameter] = parameters(self.model)

    def of_stage(self, stage: Any) -> Iterator[Check]:
        """The ranks under one ZeRO stage; under the first, what they share as well."""
        train = TrainSettings(epochs=2, lr=1e-3, batch=4, zero_stage=stage, precision="fp32")
        config = self.config.model_copy(update={"train": train})
        with ranks_on(config, self.groups, self.ranks, self.need, self.console, TriedActor) as team:
            if stage == 1:
                told = f"{self.groups} group(s) of {self.ranks} with {self.need} each"
                yield Check("ranks", "; ".join([told, *self.notes, *team.notes]))
                yield check(
                    "storage", lambda: self._storage(team), "run.dir must be one folder or bucket for all nodes"
                )
            for name, work, advice in self._work(team, config, stage):
                one = check(name, work, advice)
                yield one
                if one.advice:  # a rank may be stuck in it, and would answer nothing more
                    return

    def _work(self, team: ActorTeam, config: Config, stage: Any) -> Iterator[tuple[str, Callable[[], str], str]]:
        """What the ranks of one stage do together: name, work, advice."""
        yield (
            f"ZeRO-{stage}: groups' worlds",
            lambda: self._build(team, config),
            "NCCL_DEBUG=INFO tells more; on several nodes name the interface (NCCL_SOCKET_IFNAME) and let nodes talk",
        )
        yield (
            f"ZeRO-{stage}: against plain training",
            lambda: self._trains(team, config.train),
            "deltas would be wrong: do not train on this cluster before it is understood",
        )
        if stage == 1:
            yield "all-reduce", lambda: _slowest(team.everyone.call(Tried.add_up)), "look at the interconnect"
            if team.paired:
                yield "exchange", lambda: _exchange(team), "ranks of two groups must reach each other by TCP"

    def _storage(self, team: ActorTeam) -> str:
        self.storage.make()
        self.storage.put(self.model, "model")
        if unseen := blind(team.everyone, self.storage):
            raise OSError(
                f"rank(s) {unseen} do not see what the driver wrote there, or it does not see what they wrote"
            )
        names = [(self.storage.uri, f"part-{i}") for i in range(team.everyone.size)]
        written, read = zip(*team.everyone.each(Tried.store, names), strict=True)
        return f"written {sum(written) / 1e6:.0f} MB/s, read {sum(read) / 1e6:.0f} MB/s, all ranks at once"

    def _build(self, team: ActorTeam, config: Config) -> str:
        began = time.perf_counter()
        source = Source(config.model, self.storage.uri, "model")
        device = "cuda" if self.need.gpus else "cpu"
        assemble(team, config, source, self.weights, device=device, threads=self.need.threads)
        return f"built in {time.perf_counter() - began:.1f} s"

    def _trains(self, team: ActorTeam, train: TrainSettings) -> str:
        """Every group's θ after a few steps, against the same steps in plain torch in this process."""
        right = _reference(self.model, self.weights, train)
        team.everyone.call(Rank.fine_tune, EXAMPLES, 0, 1, NAME)
        worst = max(
            float((torch.from_numpy(values.copy()) - right[index][start : start + len(values)]).abs().max())
            for shard in team.everyone.call(Tried.shard)
            for index, start, values in shard
        )
        if not worst <= ROUNDING:
            raise ValueError(f"θ is up to {worst:.1e} away from plain training, and rounding explains {ROUNDING:g}")
        return f"θ within {worst:.0e}"

    def wandb(self) -> str:
        identity = {"wandb_id": NAME, "config": self.config.to_json(), "fingerprints": {}, "versions": {}}
        named = self.config.model_copy(update={"run": self.config.run.model_copy(update={"name": NAME})})
        tracker = Tracker(named, Storage(str(self.scratch)), identity)
        tracker.round({"round": 0})
        tracker.close()
        return f"track.wandb={self.config.track.wandb}"


def _reference(folder: Path, weights: Sequence[Parameter], train: TrainSettings) -> dict[int, torch.Tensor]:
    """θ after the same steps of torch's own AdamW on one CPU."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    plan = steps(EXAMPLES, batch=train.batch, epochs=train.epochs, rank=0, world=1, pad=0, seed=train.seed, round_=1)
    for step in plan:
        [batch] = step.micro
        assert batch is not None
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.rows, batch.columns]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        optimizer.step()
    named = dict(model.named_parameters())
    return {p.index: named[p.name].detach().flatten() for p in weights}


def _exchange(team: ActorTeam) -> str:
    giving = team.old.start(Tried.give)
    taken = team.new.call(Tried.take)
    giving.wait()
    return f"{sum(taken) / 1e6:.0f} MB/s over {len(taken)} pair(s)"


def _slowest(rates: Sequence[float]) -> str:
    return f"{min(rates) / 1e6:.0f} MB/s at the slowest rank"
