"""A config from its file: YAML, overrides laid over it, and every problem told at once."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dft_cluster.combinations import impossible
from dft_cluster.config import Config
from dft_cluster.errors import InputError


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
    try:
        tree = parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"config {file}: no such file") from error
    except OSError as error:
        raise InputError(f"config {file}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:
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
    found, cause = list(problems), None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found, cause = found + _told(error, tree), error
    else:
        found += impossible(config)
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
