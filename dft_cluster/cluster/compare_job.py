"""The command line of a comparison: read the config, check it, run what is missing, and say in one line how it ended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from dft_cluster.cluster import secrets
from dft_cluster.cluster.command import FAILED, OK, absolute, checked, parser, watched
from dft_cluster.comparison.loading import load
from dft_cluster.comparison.settings import CompareSettings, config_of, dotted, laid, sections, settings_to_try
from dft_cluster.comparison.split import Split
from dft_cluster.config_file import validate
from dft_cluster.errors import InputError
from dft_cluster.runs.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """`CONFIG.yaml [dotted.key=value …] [--check]`; returns the exit code."""
    asking = parser("Compares methods on the same models, facts and ranks.", "jobs/configs/compare_*.yaml")
    asking.add_argument("--check", action="store_true", help="validate everything, print the settings, start nothing")
    asked = asking.parse_intermixed_args(arguments)

    def work() -> int:
        settings = load(asked.config, asked.overrides)
        for file in sorted({one for one in _secrets(settings) if one}):
            secrets.load(file)
        settings = settings.model_copy(
            update={"run": settings.run.model_copy(update={"dir": absolute(settings.run.dir)})}
        )
        return _check(settings) if asked.check else _run(settings)

    return checked(work)


def _secrets(settings: CompareSettings) -> Iterator[str | None]:
    """`cluster.secrets` of every run."""
    for model, data, method in product(settings.models, settings.data, settings.methods):
        yield validate(sections(settings, model, data, method)).cluster.secrets


def _check(settings: CompareSettings) -> int:
    from dft_cluster.comparison.run import read_data

    splits = read_data(settings)
    for label, parted in splits.items():
        print(f"# {label}: {len(parted.reported)} facts reported, {len(parted.development)} for the search")
        for note in parted.notes:
            print(f"# {label}: {note}")
    runs = len(settings.models) * len(settings.data) * len(settings.methods) * len(settings.seeds)
    print(f"# {runs} runs")
    print(json.dumps(settings.model_dump(mode="json"), indent=1))
    problems = list(dict.fromkeys(_unprepared(settings, splits)))
    if problems:
        raise InputError("\n".join(problems))
    return OK


def _unprepared(settings: CompareSettings, splits: Mapping[str, Split]) -> Iterator[str]:
    """What each run would refuse before its ranks are started."""
    from dft_cluster.methods.prepare import prepare

    for (data, parted), model, method in product(splits.items(), settings.models, settings.methods):
        name, tree = f"{model}.{data}.{method}", sections(settings, model, data, method)
        for setting in [{}, *_searched(settings, method)]:
            try:
                prepare(
                    config_of(laid(tree, dotted(setting)), settings.seeds[0], settings.run.dir, name), parted.reported
                )
            except InputError as error:
                yield f"{name}{f' with {setting}' if setting else ''}: {error}"
                break


def _searched(settings: CompareSettings, method: str) -> Iterator[dict[str, Any]]:
    """What a search will try of a method, or of the one that it is `like`."""
    search = settings.search
    if search is not None and (over := search.over.get(search.like.get(method, method))):
        yield from settings_to_try(search, over)


def _alone(settings: CompareSettings, console: Console) -> None:
    """Refuses a comparison that another driver of the same cluster is at work on: both would write its search and its tables."""
    from dft_cluster.cluster.launch import connect, meant
    from dft_cluster.cluster.lock import hold
    from dft_cluster.runs.storage import Storage

    model, data, method = (next(iter(part)) for part in (settings.models, settings.data, settings.methods))
    config = validate(sections(settings, model, data, method))
    if meant(config):
        connect(config, console)
        hold(Storage(settings.run.dir).below(settings.run.name))


def _run(settings: CompareSettings) -> int:
    from dft_cluster.cluster.launch import on_ray
    from dft_cluster.comparison.run import compare

    again = "finished runs are safe: run the same command again to go on from there"

    def work(console: Console) -> int:
        console.phase("reading facts")
        found = compare(settings, on_ray, console, lambda: _alone(settings, console))
        failed = [cell["name"] for cell in found["cells"] if cell["status"] != "finished"]
        place = f"{settings.run.dir}/{settings.run.name}/comparison.html"
        if failed:
            console.say(
                f"{len(failed)} of {len(found['cells'])} runs failed ({', '.join(failed)}), see {place}; {again}"
            )
            return FAILED
        console.say(f"all {len(found['cells'])} runs finished; {place}")
        return OK

    return watched(work, settings.run.dir, again)
