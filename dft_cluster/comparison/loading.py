"""Reads a comparison's config and says everything that is wrong with it at once, of every run that would come of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dft_cluster.comparison.settings import (
    CompareSettings,
    SearchSettings,
    Setting,
    dotted,
    laid,
    sections,
    settings_to_try,
)
from dft_cluster.config_file import parse, validate
from dft_cluster.errors import InputError

SHARED = {
    "base": {"run"},
    "models": {"run", "facts"},
    "data": {"run", "model"},
    "methods": {"run", "model", "facts", "warmup", "evaluate", "track", "cluster"},
}
"""Sections that may not stand there: the comparison places its runs itself; what is measured, and on which ranks, is one for
all methods."""
OWN = {
    "train.seed": "`seeds` sets it",
    "converge.keep": "a run ends with the round that its search chose, else with its last",
}
"""Keys that stand nowhere: the comparison sets them."""
SEARCHED = {
    f"converge.{key}": "with a search no run ends by what the reported facts say"
    for key in ("reliability", "patience", "min_gain")
}
"""Keys that stand nowhere beside a search."""
SAME = {
    **OWN,
    "train.template": "all methods are asked alike, set it in base, models or data",
    "train.eos": "all methods are taught the same tokens, set it in base, models or data",
    "train.precision": "all methods are measured in the same precision, set it in base, models or data",
}
"""Keys that are no method's own."""


def load(path: str | Path, overrides: Iterable[str] = ()) -> CompareSettings:
    """Reads a YAML file, lays `dotted.key=value` overrides over it and validates the whole: every problem in one error."""
    file = Path(path)
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"config {file}: no such file") from error
    except OSError as error:
        raise InputError(f"config {file}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"config {file}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"config {file}: must be a mapping of sections")
    problems: list[str] = []
    for override in overrides:
        _override(tree, override, problems)
    return checked(tree, str(file), problems)


def checked(tree: Mapping[str, Any], source: str = "comparison", problems: Iterable[str] = ()) -> CompareSettings:
    """The typed settings, or one InputError that lists every problem (those found before, too)."""
    found, cause = list(problems), None
    given = {key: value for key, value in tree.items() if value is not None}
    try:
        settings = CompareSettings.model_validate(given)
    except ValidationError as error:
        bad = {item["loc"][0] for item in error.errors()}
        found, cause = found + told(error), error
        if not bad & {"base", "models", "data", "methods"}:
            # What the sound keys make of each other is told too, with the others at their defaults.
            sound = CompareSettings.model_validate({key: value for key, value in given.items() if key not in bad})
            found += dict.fromkeys(_problems(sound))
    else:
        found += dict.fromkeys(_problems(settings))
    if not found:
        return settings
    listed = "\n".join(f"  {problem}" for problem in found)
    raise InputError(f"{source}: {len(found)} problem{'s'[: len(found) > 1]}\n{listed}") from cause


def _override(tree: dict[Any, Any], override: str, problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    *path, key = name.strip().split(".")
    try:
        value = parse(text)
    except (yaml.YAMLError, ValueError):
        equals = ""
    if not (equals and key and all(path)):
        problems.append(f"override {override!r}: write it as dotted.key=value, for example base.train.lr=5e-5")
        return
    for part in path:
        inner = tree.get(part)
        if not isinstance(inner, dict | None):
            return  # nothing to lay a key over, which is reported as such
        # YAML's anchors make several places one dict, of which only this place is meant.
        inner = tree[part] = dict(inner or {})
        tree = inner
    tree[key] = value


def _problems(settings: CompareSettings) -> Iterator[str]:
    yield from _misplaced(settings)
    yield from _own(settings)
    yield from _of_runs(settings)
    if settings.search is not None:
        yield from _of_search(settings, settings.search)


def _misplaced(settings: CompareSettings) -> Iterator[str]:
    trees = {"base": settings.base}
    trees |= {
        f"{axis}.{label}": t for axis in ("models", "data", "methods") for label, t in getattr(settings, axis).items()
    }
    for place, tree in trees.items():
        axis = place.partition(".")[0]
        for name in sorted(SHARED[axis] & tree.keys()):
            yield f"{place}.{name}: must not stand here; the comparison sets it, or it is one for all {axis}"
        yield from (
            f"{place}.{key}: {why}"
            for key, why in {
                **(SAME if axis == "methods" else OWN),
                **(SEARCHED if settings.search else {}),
            }.items()
            if key.partition(".")[2] in tree.get(key.partition(".")[0], {})
        )


def _own(settings: CompareSettings) -> Iterator[str]:
    if settings.reference is not None and settings.reference not in settings.methods:
        yield f"reference: {settings.reference!r} is none of the methods ({', '.join(settings.methods)})"
    for name, each in (("seeds", settings.seeds), ("levels", settings.levels)):
        if len(set(each)) < len(each):
            yield f"{name}: {list(each)} holds one twice"
    yield from _wrong({"run": {"dir": settings.run.dir}})
    warms = [
        f"{model}.{data}"
        for model, data in product(settings.models, settings.data)
        if laid(settings.base, settings.models[model], settings.data_of(data)).get("warmup", {}).get("epochs")
    ]
    if "://" in settings.run.dir and not settings.run.dir.startswith("file://") and warms:
        yield (
            f"run.dir: {settings.run.dir.partition('?')[0]} is a storage URI, and the warmed model that the runs of {warms[0]} "
            "share must lie in a folder; right would be a shared folder, or warmup.epochs=0"
        )
    for label in settings.data:
        try:
            settings.report_of(label)
        except ValidationError as error:
            yield from (f"data.{label}.report.{line}" for line in told(error))


def _of_runs(settings: CompareSettings) -> Iterator[str]:
    """What is wrong with the resulting runs, said of the part that brings it in."""
    alone = {"base": _wrong(settings.base)}
    for model, data, method in product(settings.models, settings.data, settings.methods):
        parts = {f"models.{model}": settings.models[model], f"data.{data}": settings.data_of(data),
                 f"methods.{method}": settings.methods[method]}  # fmt: skip
        for place, tree in parts.items():
            if place not in alone:
                alone[place] = _wrong(laid(settings.base, tree))
        for problem in _wrong(sections(settings, model, data, method)):
            place = next((name for name in ("base", *parts) if problem in alone[name]), f"{model}.{data}.{method}")
            yield f"{place}: {problem}"


def _of_search(settings: CompareSettings, search: SearchSettings) -> Iterator[str]:
    for label, values in search.over.items():
        if label not in settings.methods:
            yield f"search.over.{label}: is none of the methods ({', '.join(settings.methods)})"
            continue
        refused = {name: why for name in values if (why := _unsearchable(name))}
        yield from (f"search.over.{label}.{name}: {why}" for name, why in refused.items())
        sound = {name: tried for name, tried in values.items() if name not in refused}
        singly = [{name: value} for name, tried in sound.items() for value in tried]
        together = settings_to_try(search, values) if not refused else []
        yield from _of_settings(settings, f"search.over.{label}", label, [*singly, *together])
    for label, other in search.like.items():
        if label not in settings.methods or label in search.over:
            yield f"search.like.{label}: must be one of the methods that search.over does not hold"
        if other not in search.over:
            yield f"search.like.{label}: {other!r} is none of those that are searched ({', '.join(search.over)})"
        elif {label, other} <= settings.methods.keys():
            yield from _like(settings, label, other, search.over[other])
            if not any(map(_unsearchable, search.over[other])):
                tried = settings_to_try(search, search.over[other])
                yield from _of_settings(settings, f"search.like.{label}", label, tried)


def _unsearchable(name: str) -> str:
    """Why no search may set this key; nothing where one may."""
    if not all(name.partition(".")):
        return "write it as section.key, for example train.lr"
    shared = "is one for all methods, and no setting of one" if name.partition(".")[0] in SHARED["methods"] else ""
    return (SAME | SEARCHED).get(name, shared)


def _of_settings(settings: CompareSettings, place: str, label: str, tried: Sequence[Setting]) -> Iterator[str]:
    """What is wrong with a method's runs at these settings, each problem once; not what is without any."""
    known: set[str] = set()
    for model, data in product(settings.models, settings.data):
        tree = sections(settings, model, data, label)
        known |= set(_wrong(tree))
        for setting in tried:
            found = [problem for problem in _wrong(laid(tree, dotted(setting))) if problem not in known]
            known |= set(found)
            where = f"{setting}: " if len(setting) > 1 else ""
            yield from (f"{place}: {where}{problem}" for problem in found)


def _like(settings: CompareSettings, label: str, other: str, chosen_too: Iterable[str]) -> Iterator[str]:
    """The round that is chosen for one must be one of the other's; and a control differs in its mask alone, for the same k
    and λ."""
    known = set(chosen_too)
    for model, data in product(settings.models, settings.data):
        trees = [sections(settings, model, data, method) for method in (label, other)]
        if any(map(_wrong, trees)):
            continue
        own, chosen = (validate(tree).to_json() for tree in trees)
        alike = [("method", "rounds")]
        if own["method"]["name"] == chosen["method"]["name"] == "dft":
            alike = [(section, key) for section in ("method", "train", "lora") for key in own[section]]
            alike += [("dft", key) for key in ("rest", "outside", "scales")]
        for section, key in alike:
            name = f"{section}.{key}"
            if own[section][key] != chosen[section][key] and name not in known:
                known.add(name)
                yield (
                    f"search.like.{label}: {name} is {own[section][key]}, but {chosen[section][key]} for {other} "
                    f"({model}.{data}); right would be the same"
                )


def _wrong(tree: Mapping[str, Any]) -> list[str]:
    try:
        validate(tree)
    except InputError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


def told(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong."""
    lines: list[str] = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        # What a wrong union or key adds to a place is pydantic's own word, not the user's.
        place = ".".join(str(part) for part in item["loc"] if part != "[key]")
        if not place:
            lines += message.split("\n")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key")
        elif item["type"] == "missing":
            lines.append(f"{place}: is missing")
        else:
            lines.append(f"{place}: {message[0].lower()}{message[1:]} (it is {item['input']!r})")
    return lines
