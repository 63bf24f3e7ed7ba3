"""A comparison as one typed tree: models × data × methods × seeds, each combination an ordinary run. Imports no torch."""

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dft_cluster.config import Config, Count, TrackSettings, no_boolean
from dft_cluster.config_file import validate


def _mapping(value: object) -> object:
    """A section with nothing under it is an empty one."""
    return {} if value is None else value


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Section = Annotated[dict[str, Any], BeforeValidator(_mapping)]
Sections = Annotated[dict[str, Section], BeforeValidator(_mapping)]
"""Sections of a run's config, to be laid over others."""
Setting = dict[str, Any]
"""Values by dotted key."""
Whole = Annotated[int, BeforeValidator(no_boolean), Field(ge=0)]
Percent = Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=100)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class ReportSettings(_Settings):
    """Which facts of a data set are taught and reported; what is left over may be used to choose settings."""

    facts: Count = 100
    """How many: the first ones, or with a seed a sample."""
    seed: Whole | None = None
    rephrases: Whole = 0
    """Only facts with at least so many rephrases (CounterFact's generation prompts are none)."""
    locality: Whole = 0
    """Only facts with at least so many locality probes."""


class SearchSettings(_Settings):
    """One budget for every method: as many trials and as many device-seconds, on facts that are never reported."""

    facts: Count = 50
    """Development facts, drawn from those that are not reported."""
    trials: Count = 9
    """Settings that each method may try."""
    device_seconds: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, allow_inf_nan=False)] = 900.0
    """Wall seconds × ranks that each method may spend on its trials."""
    rungs: Count | None = None
    """Most rungs; 1 tries every setting on all development facts (right where a run costs about the same on few facts)."""
    reliability: Percent = 95.0
    """Settings that reach this on the development facts (token) are compared by generality and locality."""
    seed: Whole = 0
    """Draws the development facts and the settings tried."""
    over: dict[Label, dict[str, Annotated[list[Any], Field(min_length=1)]]]
    """By method: the values of each of its few hyper-parameters, by dotted key."""
    like: dict[Label, Label] = {}
    """A method that takes the setting chosen for another one: a control at the same k and λ."""


class PlaceSettings(_Settings):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "comparison"
    """The comparison's folder inside `dir`."""
    dir: str = "runs"
    """An absolute folder or storage URI that every rank sees; relative only outside of a Ray job."""


class CompareSettings(_Settings):
    """Everything a comparison is."""

    base: Sections = {}
    """Sections that all runs share."""
    models: Annotated[dict[Label, Sections], Field(min_length=1)]
    """By label: sections laid over `base`."""
    data: Annotated[dict[Label, Sections], Field(min_length=1)]
    """By label: sections laid over those; `report` in it overrides the comparison's own."""
    methods: Annotated[dict[Label, Sections], Field(min_length=1)]
    """By label: sections laid over those; two labels may name one method with other settings."""
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)] = (0,)
    """Each becomes `train.seed`."""
    reference: str | None = None
    """The method that the others are compared with; none takes `dft`, or the first."""
    on: Literal["token", "exact"] = "token"
    """Which kind of figure the comparison at equal reliability and the plots use."""
    levels: tuple[Percent, ...] = (80.0, 90.0, 95.0, 99.0)
    """Reliabilities at which methods are compared along their trajectories."""
    draws: Count = 10_000
    """Draws of the bootstrap over facts."""
    keep: Literal["all", "patches", "figures"] = "patches"
    """What finished runs keep on disk: everything, no checkpoints, or neither checkpoints nor patches."""
    report: ReportSettings = ReportSettings()
    search: SearchSettings | None = None
    run: PlaceSettings = PlaceSettings()
    track: TrackSettings = TrackSettings()

    def data_of(self, data: str) -> dict[str, Any]:
        """The sections of a data set that are a run's."""
        return {name: section for name, section in self.data[data].items() if name != "report"}

    def report_of(self, data: str) -> ReportSettings:
        return ReportSettings.model_validate({**self.report.model_dump(), **self.data[data].get("report", {})})

    @property
    def compared_with(self) -> str:
        return self.reference or ("dft" if "dft" in self.methods else next(iter(self.methods)))


def laid(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Sections over sections, the last of equal keys winning."""
    result: dict[str, Any] = {}
    for tree in trees:
        for name, section in tree.items():
            both = isinstance(section, Mapping) and isinstance(result.get(name), Mapping)
            result[name] = {**result[name], **section} if both else section
    return result


def dotted(setting: Setting) -> dict[str, Any]:
    """`{"train.lr": 1e-5}` as sections."""
    return laid(
        *({section: {key: value}} for name, value in setting.items() for section, _, key in [name.partition(".")])
    )


def settings_to_try(search: SearchSettings, values: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """The whole grid where it is small enough, else as many of its settings as there are trials, drawn without repeats."""
    grid = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    if len(grid) <= search.trials:
        return grid
    return [grid[place] for place in sorted(random.Random(search.seed).sample(range(len(grid)), search.trials))]


def sections(settings: CompareSettings, model: str, data: str, method: str | None = None) -> dict[str, Any]:
    """The tree of a run before its seed, its place and a chosen setting are laid over it."""
    # A search chooses the round to end with; nothing that the reported facts say may end a run before it.
    to_the_end = {"reliability": "off", "patience": "off"} if settings.search else {}
    return laid(
        {"track": {"wandb": "off"}, "converge": {"keep": "last", **to_the_end}},
        settings.base,
        settings.models[model],
        settings.data_of(data),
        settings.methods[method] if method else {},
    )


def config_of(tree: Mapping[str, Any], seed: int, folder: str, name: str, warmed: str | None = None) -> Config:
    """A run of the comparison. Its facts are handed to it, chosen already."""
    own: dict[str, Any] = {
        "facts": {"limit": None, "seed": None},
        "train": {"seed": seed},
        "run": {"dir": folder, "name": name},
    }
    if warmed is not None:
        own |= {"model": {"name": warmed, "gguf": None, "revision": None}, "warmup": {"epochs": 0}}
    return validate(laid(tree, own), name)
