"""Facts out of files: `read(path)` takes every form below and says what it took the file for.

| form          | prompt                  | old answer              | new answer              |
|---------------|-------------------------|-------------------------|-------------------------|
| `common`      | `prompt`, `question`    | `old`, `target_old`     | `new`, `target_new`     |
| `csv`         | `prompt`                | `old`                   | `new`                   |
| `counterfact` | `requested_rewrite` (1) | `target_true.str`       | `target_new.str`        |
| `mend`        | `src`                   | `answers[0]` (2)        | `alt`, empty = left out |
| `easyedit`    | `prompt`                | `ground_truth`          | `target_new`            |
| `knowedit`    | `prompt`                | `ground_truth[0]`       | `target_new`            |
| `pairs`       | `instruction`, `input`  | `output`, in one file   | `output`, in the other  |
| `hub`         | a data set's id, with `file` and `split`; its records' form is told as by `auto` |

| form          | rephrases               | locality                                          |
|---------------|-------------------------|---------------------------------------------------|
| `common`      | `rephrase`, `rephrases` | `locality`: [{prompt, answer}]                    |
| `csv`         | `rephrase`, parted by | | `locality_prompt`, `locality_answer`              |
| `counterfact` | `paraphrase_prompts`    | `neighborhood_prompts`, whose answer is the old   |
| `mend`        | `rephrase`              | `loc`, `loc_ans`                                  |
| `easyedit`    | `rephrase_prompt`       | `locality_prompt`, `locality_ground_truth`        |
| `knowedit`    | `rephrase_prompt`       | `locality`: {kind: [{prompt, ground_truth}]}      |
| `pairs`       | from `probes` (3)       | from `probes` (3)                                 |

(1) `requested_rewrite.prompt` with its {} replaced by the subject. (2) The further answers, and MEND's
`pred`, become aliases. (3) `probes` names a JSONL file {"prompt", "rephrase": […], "locality": […],
"portability": […]}; its records add to the facts of the same prompt, whatever the form.

All but `csv` are JSONL or one JSON list. `common` and `csv` also take `id` and `subject`, `common` further
`portability`, `aliases` and `extra`; `mend`, `easyedit` and `knowedit` bring portability as well. A record
without an id gets its number. The path `embedded` reads the facts that ship with the project.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from dft_cluster.errors import InputError
from dft_cluster.facts import alpaca, forms, hub, records
from dft_cluster.facts.fact import Fact
from dft_cluster.facts.folding import plain
from dft_cluster.facts.records import Record

KNOWN = ("auto", *forms.FORMS, "hub")


@dataclass(frozen=True)
class Reading:
    """What was read: the facts, the form they were taken for, and what the user should know about it."""

    facts: list[Fact]
    form: str
    notes: list[str]


def read(
    path: str, form: str = "auto", *, probes: str | None = None, file: str | None = None, split: str = "train"
) -> Reading:
    """The facts in `path`; `file` and `split` belong to the form `hub` alone."""
    if form not in KNOWN:
        raise InputError(f"unknown facts format {form!r}; known are {', '.join(KNOWN)}")
    if file is not None and form != "hub":
        raise InputError(f"the file {file!r} of a data set is named, but the facts format is {form!r}, not 'hub'")
    taken, found, notes = _records(path, form, file, split)
    facts = [fact for record in found if (fact := forms.FORMS[taken](record)) is not None]
    notes += _tallied(path, found)
    facts = _numbered(facts, notes)
    if probes is not None:
        facts = _with_probes(facts, probes, notes)
    return Reading(facts, taken, notes)


def _records(path: str, form: str, file: str | None, split: str) -> tuple[str, list[Record], list[str]]:
    """The records, the form to read them as, and notes."""
    if path == "embedded":
        if form not in {"auto", "common"}:
            raise InputError(f"the embedded facts are in the form 'common', not {form!r}; use 'auto'")
        text = resources.files("dft_cluster.facts").joinpath("world.jsonl").read_text(encoding="utf-8")
        return "common", records.parse_json(text, "embedded"), []
    if form == "hub":
        found = hub.load(path, file, split)
        return _told(path, found)
    if form == "csv" or (form == "auto" and Path(path).suffix.lower() == ".csv"):
        return "csv", records.load_csv(path), []
    if form == "pairs" or (form == "auto" and "," in path and not Path(path).exists()):
        return "pairs", *alpaca.match(path)
    if form == "auto" and not Path(path).exists():
        raise InputError(f"{path}: there is no such file; a data set of the hub needs the format 'hub'")
    found = records.load_json(path)
    return _told(path, found) if form == "auto" else (form, found, [])


def _told(path: str, found: list[Record]) -> tuple[str, list[Record], list[str]]:
    form = forms.tell(found[0])
    return form, found, [f"{path}: taken for {form!r} by its fields"]


def _numbered(facts: list[Fact], notes: list[str]) -> list[Fact]:
    """The facts with every id once: a second "7" becomes "7#2"."""
    taken = {fact.id for fact in facts}
    seen: dict[str, int] = {}
    result, again = [], []
    for fact in facts:
        count = seen[fact.id] = seen.get(fact.id, 0) + 1
        if count == 1:
            result.append(fact)
            continue
        again.append(fact.id)
        while (distinct := f"{fact.id}#{count}") in taken:
            count += 1
        taken.add(distinct)
        result.append(replace(fact, id=distinct))
    if again:
        notes.append(f"{len(again)} ids were taken already and got a number, the first: {again[0]!r}")
    return result


def _with_probes(facts: list[Fact], path: str, notes: list[str]) -> list[Fact]:
    """The facts with the probes file's rephrases, locality and portability added, matched by prompt."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, fact in enumerate(facts):
        places[plain(fact.prompt)].append(place)
    result, alone = list(facts), []
    found = records.load_json(path)
    for record in found:
        prompt = record.text(*forms.PROMPT)
        if plain(prompt) not in places:
            alone.append(prompt)
            continue
        rephrases = record.texts(*forms.REPHRASE)
        locality, portability = forms.probes(record, "locality"), forms.probes(record, "portability")
        for place in places[plain(prompt)]:
            fact = result[place]
            result[place] = replace(
                fact,
                rephrases=(*fact.rephrases, *rephrases),
                locality=(*fact.locality, *locality),
                portability=(*fact.portability, *portability),
            )
    notes += _tallied(path, found)
    if alone:
        notes.append(f"{path}: {len(alone)} probes match no fact's prompt, the first: {alone[0]!r}")
    return result


def _tallied(path: str, found: list[Record]) -> list[str]:
    return [f"{path}: {what} ({count} times)" for what, count in found[0].tally.items()]
