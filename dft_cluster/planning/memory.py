"""What a rank holds while it works: the blocks of a run in their order, each with its size.

Letters: n elements of the model, t of what the optimizer trains (an adapter's factors, else θ), s of this rank's shard of t,
k of its shard of θ, b bytes of an element of the working weights (2 or 4), W ranks of the group.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from dft_cluster.config import FORGETS, LOOKS_AT_OLD, ONE_ROUND
from dft_cluster.planning.asked import Asked
from dft_cluster.planning.ledger import Ledger, Moment, Place
from dft_cluster.planning.model import share
from dft_cluster.training.engine import deepspeed_config
from dft_cluster.training.exchange import CHUNK

MIB = 1 << 20
GIB = 1 << 30
PROCESS = (500 if torch.version.cuda is None else 950) * MIB
"""A Ray actor with interpreter, torch, transformers and DeepSpeed after its first batch: measured (docs/plan.md). A torch that is
built for CUDA loads its libraries without a device, too."""
CUDA_DEVICE, CUDA_HOST = 1 * GIB, 3 * GIB
"""Allowances for the CUDA context with NCCL and cuBLAS, and for CUDA's libraries on the host; not measured."""

BUCKET = 5 * 10**8
"""DeepSpeed's reduce_bucket_size where the config names none."""
LIVE, PREFETCH, SUBGROUP = 10**9, 5 * 10**7, 10**9
"""DeepSpeed's stage3_max_live_parameters, stage3_prefetch_bucket_size and sub_group_size, in elements."""

PERSISTENT = 10**5
"""DeepSpeed's stage3_param_persistence_threshold: smaller weights stay whole on every rank."""

Role = Literal["old", "new", "rank"]


@dataclass(frozen=True)
class Memory:
    """The fullest moments of a rank's device and host, and what its host holds only while the model is read."""

    role: Role
    device: Moment
    host: Moment
    loading: int = 0

    def of(self, place: Place) -> int:
        return self.device.total if place == "device" else self.host.total


def of_ranks(asked: Asked) -> list[Memory]:
    """The old group's and the new group's ranks, or those of the one group. Equal ranks of a group are alike."""
    roles: list[Role] = ["old", "new"] if asked.paired else ["rank"]
    return [_Life(asked, role).memory() for role in roles]


def of_fullest(asked: Asked, place: Place) -> Memory:
    return max(of_ranks(asked), key=lambda memory: memory.of(place))


class _Life:
    """One rank from its start to the end of its second round, after which nothing new comes; or to the warm-up's end."""

    def __init__(self, asked: Asked, role: Role) -> None:
        config, model = asked.config, asked.model
        self.asked, self.role, self.train = asked, role, config.train
        self.ledger = Ledger(asked.device)
        self.stage, self.b, self.world = config.train.zero_stage, asked.width, asked.world
        sizes = model.trained(config.train.adapter, config.lora.rank)
        self.n, self.t, self.largest = model.elements, sum(sizes), max(sizes)
        self.s = share(sizes, self.world, self.stage)
        low_rank = config.train.adapter != "none"
        # Under an adapter every rank keeps an equal share of each adapted weight, whatever the stage.
        self.k = share([p.numel for p in model.theta], self.world, 3) if low_rank else self.s
        self.low_rank = low_rank
        self.frozen = self.n if low_rank else self.n - self.t
        self.kept: Place = config.cluster.buffers
        self.offload = config.train.offload != "none"
        self.optimizer: Place = "host" if self.offload else "device"
        zero = deepspeed_config(config.train, self.world, asked.device)["zero_optimization"]
        # Offloading the optimizer makes DeepSpeed gather gradients in one buffer, whatever the config says.
        self.contiguous = bool(zero.get("contiguous_gradients", True)) or self.offload
        self.limit = int(zero.get("reduce_bucket_size", BUCKET))

    def memory(self) -> Memory:
        loading = self.build()
        self.evaluate()
        if self.asked.warms_up:
            self.fine_tune("fine-tuning")
        else:
            self.rounds()
        peak = self.ledger.peak
        return Memory(self.role, peak["device"], peak["host"], loading)

    # Building: what DeepSpeed makes of the weights.

    def build(self) -> int:
        """Returns the host's bytes that stand only while the files are read."""
        take, on_cpu = self.ledger.take, self.asked.device == "cpu"
        self.ledger.phase = "building"
        take("process", "process", PROCESS if on_cpu else CUDA_HOST, "host")
        if not on_cpu:
            take("context", "process", CUDA_DEVICE)
        (self._build_3 if self.stage == 3 else self._build_1_and_2)()
        if self.low_rank:
            take("θ", "θ kept and scores", self._of_theta(), self.kept)
        if on_cpu:
            return 0
        # Stages 1 and 2 make the model on the host first; under stage 3 the group's first rank holds the files' tensors there.
        return self.n * (self.asked.model.saved_bytes if self.stage == 3 else self.b)

    def _build_1_and_2(self) -> None:
        """Weights are laid end to end (b·t, for a moment twice); the shard is cloned (b·s) and cast to fp32 masters (4s); a
        zero gradient (4s) is made to initialise the optimizer, and kept on the host where that is offloaded.

        In a heap the clone goes where the weights first were. Files in another dtype than the working weights leave room for
        about one copy of these behind (measured, docs/plan.md), each tensor being read whole and cast.
        """
        take, free, b, s = self.ledger.take, self.ledger.free, self.b, self.s
        if self.asked.device == "cpu" and self.asked.model.saved_bytes != b:
            take("as saved", "weights", b * self.n)
            free("as saved")
        take("frozen", "weights", b * self.frozen)
        take("loaded", "weights", b * self.t)
        take("flat", "weights", b * self.t)
        free("loaded")
        if b != 4:
            take("clone", "weights", b * s, instead_of="loaded")
        take(
            "masters",
            "optimizer",
            self._pinned(4 * s, self.optimizer),
            self.optimizer,
            instead_of="" if b != 4 else "loaded",
        )
        if b != 4:
            free("clone")
        if self.offload:
            take("16-bit shard", "DeepSpeed's buffers", self._pinned(b * s), "host")
            take("fp32 gradients", "gradients", self._pinned(4 * s), "host")
            take("gradient on its way down", "DeepSpeed's buffers", self._pinned(b * self.largest), "host")
            take("gradient on its way", "DeepSpeed's buffers", b * self.largest)
        else:
            take("zeros", "gradients", 4 * s)
            free("zeros")

    def _build_3(self) -> None:
        """Each weight is cut into W pieces as it is made; the trained pieces are laid end to end (b·s), cast and cloned to
        fp32 masters (4s, for a moment twice); their gradients have a place of their own for good (b·s)."""
        take, free, b, s = self.ledger.take, self.ledger.free, self.b, self.s
        cut: Place = "host" if self.train.offload == "all" else "device"
        small = sum(p.numel for p in self.asked.model.weights if p.numel <= PERSISTENT)
        take("frozen", "weights", b * share([self.frozen], self.world, 3), cut)
        take("persistent", "weights", b * small if self.world > 1 else 0)
        take("loaded", "weights", b * s, cut)
        take("partitions", "weights", self._pinned(b * s, cut), cut)
        free("loaded")
        if b != 4:
            take("converted", "optimizer", 4 * s, self.optimizer)
        take("masters", "optimizer", 4 * s, self.optimizer)
        if b != 4:
            free("converted")
        if self.offload:
            take("fp32 gradients", "gradients", self._pinned(4 * s), "host")
        else:
            take("zeros", "gradients", 4 * min(s, SUBGROUP + self.largest))
            free("zeros")
        take("gradient partitions", "gradients", self._pinned(b * s, self.optimizer), self.optimizer)
        if self.contiguous:
            take("bucket", "DeepSpeed's buffers", 4 * self.limit)  # in the dtype that gradients travel in

    def _pinned(self, size: int, place: Place = "host") -> int:
        """PyTorch rounds pinned host memory up to a power of two."""
        on_host = self.asked.device == "cuda" and place == "host"
        return 1 << (size - 1).bit_length() if on_host and size else size

    # Working.

    def evaluate(self) -> None:
        self.ledger.phase = "evaluating"
        self._gather()
        self.ledger.take("evaluation", "activations and logits", self.asked.evaluation(), instead_of="evaluation")
        self.ledger.free("evaluation")
        self._let_go()

    def rounds(self) -> None:
        first, last = self.asked.first, self.asked.config.method.rounds
        for number in range(first, min(first + 1, last) + 1):
            self.round(number)
            self.evaluate()

    def round(self, number: int) -> None:
        method, again = self.asked.config.method.name, "" if number == self.asked.first else ", again"
        if method in ONE_ROUND:
            return
        if method in ("dft", "interpolate") or (method == "f_learning" and number == FORGETS):
            self._keep()
        if method == "ft_c" and "centres" not in self.ledger:
            # They are made like the masters, not like the buffers that `cluster.buffers` places.
            self.ledger.take("centres", "θ kept and scores", 4 * self.s, self.optimizer, instead_of="zeros")
        self.fine_tune(f"fine-tuning{again}")
        if method != "dft":
            return
        if self.role == "rank" and LOOKS_AT_OLD[self.asked.config.dft.mask]:
            self._score()
            self.fine_tune("fine-tuning on the new answers" + again)
        if self.role != "old":
            self._score()

    def _keep(self) -> None:
        """θ of the round's start, 4 bytes an element of the shard; an adapter leaves it where it is."""
        self.ledger.phase = "keeping θ"
        if "start" not in self.ledger and not self.low_rank:
            self.ledger.take("start", "θ kept and scores", self._of_theta(), self.kept, instead_of="zeros")

    def _score(self) -> None:
        """The other delta, then the scores, then the marks in its place: 4 bytes an element; and a few chunks under way."""
        self.ledger.phase = "choosing the core"
        if "other" not in self.ledger:
            self.ledger.take("other", "θ kept and scores", self._of_theta(), self.kept)
        if self.asked.config.dft.reuse > 1 and "old delta" not in self.ledger:
            self.ledger.take("old delta", "θ kept and scores", self._of_theta(), self.kept)
        self.ledger.take("chunks", "θ kept and scores", 3 * 4 * CHUNK, self.kept, instead_of="chunks")
        self.ledger.free("chunks")

    def _of_theta(self) -> int:
        """Buffers of 4 bytes for each element of the shard of θ, cut like the masters: one, under stage 3 one for each
        sub-group, under an adapter one for each weight."""
        if self.low_rank:
            cuts = [-(-p.numel // self.world) for p in self.asked.model.theta]
        elif self.stage == 3:
            cuts = [SUBGROUP] * (self.k // SUBGROUP) + [self.k % SUBGROUP]
        else:
            cuts = [self.k]
        return sum(self._pinned(4 * cut, self.kept) for cut in cuts)

    def _gather(self) -> None:
        """Stage 3: the weights that a pass has gathered from all ranks, as many as DeepSpeed lets live at once."""
        if self.stage == 3 and self.world > 1:
            self.ledger.take("gathered", "weights", self.b * min(self.n, LIVE + PREFETCH), instead_of="gathered")

    def _let_go(self) -> None:
        if "gathered" in self.ledger:
            self.ledger.free("gathered")

    def fine_tune(self, phase: str) -> None:
        """Two steps tell it all: in the second the activations stand beside AdamW's moments, which the first has made."""
        self.ledger.phase = phase
        for _ in range(2):
            self._backward()
            self._reduce()
            self._step()
            self.ledger.trim()  # the next step uses the room that this one has made

    def _backward(self) -> None:
        """At first all activations and no gradient, at last all gradients and the activations of a single layer.

        From stage 2 on gradients of other ranks' shards are dropped bucket by bucket. A heap has no use for the holes that
        they leave.
        """
        take, free, b = self.ledger.take, self.ledger.free, self.b
        counted, bucket = self.asked.training(), self._bucket()
        self._gather()
        if self.contiguous and self.stage < 3:
            take("bucket", "DeepSpeed's buffers", b * self.limit)
        take("activations", "activations and logits", counted.whole, instead_of="evaluation")
        free("activations")
        take("one layer's", "activations and logits", counted.layer, instead_of="activations")
        if self.stage == 1 or self.asked.device == "cpu":
            produced = self.t
        elif self.stage == 2:
            produced = (0 if self.offload else self.s) + bucket
        else:
            produced = self.largest
        take("gradients", "gradients", b * produced)
        free("one layer's")

    def _bucket(self) -> int:
        """Elements reduced at once: whole weights up to the limit, and one alone that is larger."""
        return min(self.t, max(self.limit, self.largest))

    def _reduce(self) -> None:
        """Gradients travel in fp32: a bucket is copied together and cast (stage 3: cast and copied together)."""
        take, free, bucket = self.ledger.take, self.ledger.free, self._bucket()
        if self.contiguous and self.stage < 3 and not self.offload:
            take("shard's gradients", "gradients", self.b * self.s)
        if self.stage == 3:
            if not self.contiguous and self.b != 4:
                take("bucket in fp32", "DeepSpeed's buffers", 4 * bucket)
            take("bucket's copy", "DeepSpeed's buffers", 4 * bucket)
        else:
            take("bucket's copy", "DeepSpeed's buffers", self.b * bucket)
            if self.b != 4:
                take("bucket in fp32", "DeepSpeed's buffers", 4 * bucket)
        free(*(name for name in ("bucket's copy", "bucket in fp32") if name in self.ledger))
        if self.stage < 3 and self.contiguous:
            free("bucket")
        if self.stage == 3 or (self.offload and self.stage < 3):
            free("gradients")
        self._let_go()

    def _step(self) -> None:
        """The norm is taken in fp64, weight by weight; the shard's gradients are laid end to end (b·s) and cast to fp32
        (4s; stage 3: a sub-group at a time); AdamW's two moments (8s) are made in the first step."""
        take, free, b = self.ledger.take, self.ledger.free, self.b
        piece = -(-self.largest // self.world) if self.stage == 3 else min(self.largest, self.s)
        take("norm", "DeepSpeed's buffers", 8 * piece)
        free("norm")
        at_once = min(self.s, SUBGROUP + piece) if self.stage == 3 else self.s
        if not self.offload:
            if b != 4:
                take("flat gradients", "gradients", b * at_once)
            take("fp32 gradients", "gradients", 4 * at_once, instead_of="converted")
            for name in ("flat gradients", "gradients", "shard's gradients"):
                if name in self.ledger:
                    free(name)
        if "moments" not in self.ledger:
            take("moments", "optimizer", 8 * self.s, self.optimizer)
        if not self.offload:
            free("fp32 gradients")
