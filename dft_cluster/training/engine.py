"""A DeepSpeed engine that lives as long as the run: set θ, train, read the shards, forget, train again."""

import ctypes
import fcntl
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dft_cluster.arithmetic.contrast import all_finite
from dft_cluster.config import LoraSettings, TrainSettings
from dft_cluster.facts.layout import Example
from dft_cluster.models.structure import Parameter
from dft_cluster.patch.folder import Folder
from dft_cluster.training import shards
from dft_cluster.training.adapter import LowRank, wrap
from dft_cluster.training.batches import Batch, collate, mixed, steps
from dft_cluster.training.losses import answer_logits, total_nll
from dft_cluster.training.theta import Theta, Whole, round_weight, write_weight

_SIOCGIFADDR = 0x8915  # of <linux/sockios.h>


@dataclass(frozen=True)
class FineTune:
    """What one fine-tune of a group saw: the loss of every step, answer tokens counted over the whole group."""

    losses: list[float]
    tokens: int
    seconds: float


@dataclass
class Place:
    """A rank's seat in its group's world."""

    rank: int
    world: int
    address: str
    port: int
    device: str = "cpu"
    threads: int | None = None


def join(place: Place, own_address: str) -> None:
    """Enters the group's world. On a CPU, DeepSpeed would first compile a shared-memory op that serves inference only."""
    talk_over(own_address)
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(place.world),
        MASTER_ADDR=place.address,
        MASTER_PORT=str(place.port),
    )
    if place.threads:
        torch.set_num_threads(place.threads)
    if place.device == "cpu":
        _keep_freed_memory()
    os.environ.setdefault("DS_ACCELERATOR", place.device)
    import deepspeed
    import deepspeed.ops

    if place.device == "cpu":
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.init_distributed("nccl" if place.device == "cuda" else "gloo", verbose=False)


def talk_over(address: str) -> None:
    """Makes gloo use the interface that has this node's address; by itself it may take the loopback's."""
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def _interface(address: str) -> str | None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
        for _, name in socket.if_nameindex():
            try:
                told = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                return name
    return None


def leave() -> None:
    """Leaves the world for good, so that this process could join another."""
    import deepspeed.comm.comm

    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None  # DeepSpeed would take the next world for the one just left


def _keep_freed_memory() -> None:
    """Lets glibc reuse what training frees: handing large blocks back after every step costs more in page faults
    than the step's arithmetic."""
    trim_threshold, mmap_max = -1, -4  # names of <malloc.h>
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def _give_back_freed_memory() -> None:
    """Hands back what a fine-tune freed, lest the next phase's needs come on top of it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def deepspeed_config(train: TrainSettings, world: int, device: str = "cpu") -> dict[str, Any]:
    """One micro-batch a rank as far as DeepSpeed knows; the loss carries the weights (see `Engine.fine_tune`)."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if device == "cpu":
        # DeepSpeed's defaults copy all gradients once more, through buckets sized for a GPU.
        zero |= {"contiguous_gradients": train.offload != "none", "reduce_bucket_size": 2 * 10**7}
    if train.offload != "none":
        zero["offload_optimizer"] = offload
    if train.offload == "all":
        zero["offload_param"] = offload
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": train.precision == "bf16"},
        # The sign of every delta matters: gradients of several ranks are added up in fp32.
        "communication_data_type": "fp32",
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.lr,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": train.weight_decay,
                "torch_adam": True,
                "fused": True,
            },
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
    }


BLOCK = 1 << 20


@dataclass(frozen=True)
class Trained:
    """What the optimizer trains: θ itself, or an adapter's factors (whose fragments have negative numbers)."""

    masters: list[Tensor]
    fragments: list[shards.Fragment]


@contextmanager
def _in_shards(settings: dict[str, Any]) -> Iterator[None]:
    """transformers and peft build models in shards for as long as such a config lives: this one, and none that comes later."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(settings)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


def _unwatched(_done: int, _total: int, _loss: float) -> None:
    """Nobody looks on."""


class Engine:
    """One rank's model, optimizer and θ."""

    def __init__(
        self,
        folder: Path,
        train: TrainSettings,
        lora: LoraSettings,
        place: Place,
        parameters: Sequence[Parameter],
        *,
        kept_on: torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`parameters` are the weights being updated: trained themselves, or adapted; `kept_on` is where an adapter's
        fp32 weights lie."""
        import deepspeed
        from transformers import AutoModelForCausalLM

        self.train, self.place, self.stage = train, place, train.zero_stage
        settings = deepspeed_config(train, place.world, place.device)
        with _in_shards(settings) if self.stage == 3 else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.bfloat16 if train.precision == "bf16" else torch.float32,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
            if train.gradient_checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.weights: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
            index = {id(self.weights[p.name]): p.index for p in parameters}
            if train.adapter == "lora":
                model, adapted = wrap(model, parameters, lora)
            else:
                for weight in self.weights.values():
                    weight.requires_grad_(id(weight) in index)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, model_parameters=[w for w in model.parameters() if w.requires_grad], config=settings
        )
        self._engine.eval()  # an adapter comes in training mode, with its dropout
        self.module = self._engine.module
        self.device = torch.device(self._engine.device)
        own = [m.data for m in shards.masters(self._optimizer, self.stage)]
        self.theta: Theta
        self._low_rank: LowRank | None = None
        if train.adapter == "lora":
            at = (self.stage, place.rank, place.world)
            self.theta = self._low_rank = LowRank(adapted, self._optimizer, *at, lora, kept_on or self.device)
            self.trained = Trained(own, self._low_rank.factor_fragments)
        else:
            fragments = shards.fragments(self._optimizer, self.stage, place.rank, index)
            self.theta = Whole(self._optimizer, self.stage, fragments)
            self.trained = Trained(own, fragments)
        self.masters, self.fragments = self.theta.masters, self.theta.fragments
        self._fresh = True
        self._limit: tuple[float, Sequence[Tensor]] | None = None
        self.steps_done = 0

    def close(self) -> None:
        """Lets go of the weights, so that this process could hold others."""
        self._engine.destroy()
        if self.stage == 3:
            shards.let_go()

    def load(self, files: Folder, parameters: Mapping[int, Parameter]) -> None:
        """θ from a folder's exact values, each rank reading its own elements alone."""
        self._read(files, parameters, self.masters)
        self.push()

    def _read(self, files: Folder, parameters: Mapping[int, Parameter], into: Sequence[Tensor]) -> None:
        for fragment in self.fragments:
            fragment.of(into).copy_(files.flat(parameters[fragment.parameter].saved, fragment.start, fragment.stop))

    def push(self) -> None:
        """Working weights ← cast masters."""
        self.theta.push()

    def forget(self) -> None:
        """A fresh optimizer, and a fresh adapter."""
        shards.forget(self._optimizer)
        self._fresh = True
        self.clear()

    def clear(self) -> None:
        """What an adapter adds is in θ now, or given up: it adds nothing until the next fine-tune."""
        if self._low_rank is not None:
            self._low_rank.clear()

    def put(self, parameter: Parameter, values: Tensor) -> None:
        """Sets a working weight that has no masters."""
        write_weight(self.weights[parameter.name], values.reshape(parameter.shape), self.stage)

    def go_on(self) -> None:
        """What was trained beside the masters has been laid back: it counts, and the next fine-tune goes on with it."""
        self._fresh = False
        shards.push(self._optimizer, self.stage)
        if self._low_rank is not None:
            self._low_rank.gather()

    def round_to(self, parameter: Parameter, dtype: torch.dtype) -> None:
        """A working weight that has no masters ← the values that `dtype` can hold."""
        round_weight(self.weights[parameter.name], dtype, self.stage)

    def limit(self, epsilon: float, files: Folder, parameters: Mapping[int, Parameter]) -> None:
        """From here on no step takes a master further than `epsilon` from its value in a folder."""
        if self._limit is None:
            centres = [torch.zeros_like(m) for m in self.masters]
            self._read(files, parameters, centres)
            self.limit_around(centres, epsilon)

    def limit_around(self, centres: Sequence[Tensor], epsilon: float) -> None:
        """From here on no step takes a master further than `epsilon` from what these hold then, on whatever device."""
        self._limit = (epsilon, centres)

    def _hold_to_limit(self) -> None:
        if self._limit is None:
            return
        epsilon, centres = self._limit
        for master, centre in zip(self.masters, centres, strict=True):
            for place in range(0, master.numel(), BLOCK):
                here, there = master[place : place + BLOCK], centre[place : place + BLOCK].to(master.device)
                torch.clamp(here, there - epsilon, there + epsilon, out=here)
        self.push()

    def broken(self) -> list[int]:
        """The weights of which this rank's share holds NaN or infinity, in themselves or in what an adapter adds."""
        found = {f.parameter for f in self.fragments if not all_finite(f.of(self.masters))}
        return sorted(found | (self._low_rank.broken() if self._low_rank is not None else set()))

    def moments(self) -> list[dict[str, Tensor]]:
        """The optimizer's state of every buffer of `trained`."""
        return shards.moments(self._optimizer, self.stage)

    def fine_tune(
        self,
        examples: Sequence[Example],
        pad: int,
        round_: int,
        *,
        epochs: int | None = None,
        watch: Callable[[int, int, float], None] = _unwatched,
    ) -> FineTune:
        """Trains θ in place on the group's facts.

        The loss of a step is Σ nll / T over the whole batch of the group, T its answer tokens. DeepSpeed averages
        the ranks' gradients, so each rank backs off W · Σ nll / T of its own share; a rank without facts takes part
        with weight zero.
        """
        began = time.perf_counter()
        train, world = self.train, self.place.world
        epochs = epochs or train.epochs
        total = epochs * math.ceil(len(examples) / train.batch)
        filler = collate(examples[:1], pad)
        if self._fresh and self._low_rank is not None:
            self._low_rank.begin(mixed(train.seed, round_))
        self._fresh = False
        torch.manual_seed(mixed(train.seed, round_, self.place.rank))
        self._engine.train()
        losses: list[Tensor] = []
        tokens = 0
        plan = steps(
            examples, batch=train.batch, epochs=epochs, rank=self.place.rank, world=world, pad=pad,
            seed=train.seed, round_=round_, tokens_per_batch=train.tokens_per_batch,
        )  # fmt: skip
        watch(0, total, 0.0)  # a first step that never ends is to be seen, too
        for number, step in enumerate(plan):
            self._set_rate(number, total)
            seen = torch.zeros((), device=self.device)
            for place, batch in enumerate(step.micro):
                self._engine.set_gradient_accumulation_boundary(place == len(step.micro) - 1)
                loss = self._nll(batch or filler) * (world / step.group_targets if batch else 0.0)
                self._engine.backward(loss)
                seen += loss.detach()
            self._engine.step()
            self._hold_to_limit()
            if world > 1:
                torch.distributed.all_reduce(seen)
            losses.append(seen / world)
            tokens += step.tokens
            self.steps_done += 1
            watch(number + 1, total, float(losses[-1]))
        self._engine.eval()
        if self._low_rank is not None:
            self._low_rank.gather()
        if self.place.device == "cpu":
            _give_back_freed_memory()
        return FineTune([float(loss) for loss in losses], tokens, time.perf_counter() - began)

    def _nll(self, batch: Batch) -> Tensor:
        batch = batch.to(self.device)
        return total_nll(answer_logits(self._engine, batch), batch.targets)

    def _set_rate(self, step: int, total: int) -> None:
        done = step / total
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[
            self.train.schedule
        ]
        for group in self._optimizer.param_groups:
            group["lr"] = self.train.lr * factor
