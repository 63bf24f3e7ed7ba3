"""One function for each record form: a record in, a fact out; and how to tell the forms apart.

A form returns None for a record that its upstream means to be passed over, and notes that in the tally.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from dft_cluster.errors import InputError
from dft_cluster.facts.fact import Fact, Probe
from dft_cluster.facts.folding import plain
from dft_cluster.facts.records import Record

Form = Callable[[Record], Fact | None]

PROMPT = ("prompt", "question")
OLD = ("old", "target_old")
NEW = ("new", "target_new")
REPHRASE = ("rephrase", "rephrases")
ID = ("id", "case_id")
OTHER = ("subject", "locality", "portability", "aliases", "extra")
ANSWER = ("answer", "ground_truth", "New Answer")


def common(record: Record) -> Fact:
    """The common form, and a user's own: prompt, old, new, in any of the spellings above.

    `extra.rephrase_kind` other than "paraphrase" marks rephrases that ask for something else: CounterFact's
    generation prompts begin a text about the subject, which no single answer completes.
    """
    record = _with_flat_probe(record)
    for name in record.fields:
        if name not in {*PROMPT, *OLD, *NEW, *REPHRASE, *ID, *OTHER}:
            record.note(f"field `{name}` not used")
    extra = record.inside("extra")
    rephrases = record.texts(*REPHRASE)
    if rephrases and extra.maybe("rephrase_kind") not in {"", "paraphrase"}:
        record.note("rephrases left out, as they are not paraphrases")
        rephrases = ()
    old, *spellings = record.some(*OLD)
    return _fact(
        record,
        prompt=record.text(*PROMPT),
        old=old,
        new=record.text(*NEW),
        rephrases=rephrases,
        locality=probes(record, "locality"),
        portability=probes(record, "portability") or probes(extra, "portability"),
        aliases=[*spellings, *record.texts("aliases"), *extra.texts("answers"), *extra.texts("pred")],
    )


def csv_row(record: Record) -> Fact:
    """A CSV row: the user's own form, several rephrases in one cell parted by "|"; a cell may be empty or left off."""
    fields = {name: cell for name, cell in record.fields.items() if cell or name not in {*REPHRASE, *OTHER}}
    for name in REPHRASE:
        if name in fields:
            fields[name] = str(fields[name]).split("|")
    return common(replace(record, fields=fields))


def _with_flat_probe(record: Record) -> Record:
    """A locality probe that a user wrote as `locality_prompt` and `locality_answer`, beside those in `locality`."""
    if not {"locality_prompt", "locality_answer"} <= record.fields.keys():
        return record
    fields = dict(record.fields)
    probe = {"prompt": fields.pop("locality_prompt"), "answer": fields.pop("locality_answer")}
    empty = [value in (None, "", []) for value in probe.values()]
    if not any(empty):
        fields["locality"] = [fields.get("locality"), probe]
    elif not all(empty):
        record.note("locality probes left out, as `locality_prompt` or `locality_answer` is empty")
    return replace(record, fields=fields)


def counterfact(record: Record) -> Fact:
    """CounterFact as published: the neighbours of the subject share its true answer and must keep it."""
    rewrite = record.inside("requested_rewrite")
    subject = rewrite.text("subject")
    old = rewrite.inside("target_true").text("str")
    return _fact(
        record,
        # literally, not str.format: a template is data, and another brace in it is only text
        prompt=rewrite.text("prompt").replace("{}", subject),
        old=old,
        new=rewrite.inside("target_new").text("str"),
        subject=subject,
        rephrases=record.texts("paraphrase_prompts"),
        locality=[Probe(prompt, old) for prompt in record.texts("neighborhood_prompts")],
    )


def mend(record: Record) -> Fact | None:
    """zsRE in MEND's form, with or without EasyEdit's portability probe.

    old = answers[0], the true answer. `pred` is what the MEND authors' own model said; it and the further
    answers become aliases, so that a model's sentence with one of them can still be swapped. An empty `alt`
    is upstream's mark for "no new answer": such a record is passed over.
    """
    if record.has("alt") and not record.texts("alt"):
        record.note("records left out, as their new answer `alt` is empty")
        return None
    old, *spellings = record.some("answers")
    return _fact(
        record,
        prompt=record.text("src"),
        old=old,
        new=record.text("alt"),
        rephrases=record.texts("rephrase"),
        locality=_pairwise(record, record.texts("loc"), record.texts("loc_ans"), "loc"),
        portability=probes(record, "portability"),
        aliases=[*spellings, *record.texts("pred")],
    )


def easyedit(record: Record) -> Fact:
    """EasyEdit's flat form: one field for each probe's prompt, one for its answer."""
    old, *spellings = record.some("ground_truth")
    flat = {
        kind: _pairwise(record, record.texts(f"{kind}_prompt"), record.texts(f"{kind}_ground_truth"), kind)
        for kind in ("locality", "portability")
    }
    return _fact(
        record,
        prompt=record.text("prompt"),
        old=old,
        new=record.text("target_new"),
        rephrases=record.texts("rephrase_prompt"),
        locality=flat["locality"],
        portability=flat["portability"],
        aliases=spellings,
    )


def knowedit(record: Record) -> Fact:
    """KnowEdit: locality and portability by kind, here laid together; of several answers the first counts."""
    old, *spellings = record.some("ground_truth")
    return _fact(
        record,
        prompt=record.text("prompt"),
        old=old,
        new=record.text("target_new"),
        rephrases=record.texts("rephrase_prompt"),
        locality=probes(record, "locality"),
        portability=probes(record, "portability"),
        aliases=spellings,
    )


FORMS: dict[str, Form] = {
    "common": common,
    "counterfact": counterfact,
    "mend": mend,
    "easyedit": easyedit,
    "knowedit": knowedit,
    "pairs": common,
    "csv": csv_row,
}


def tell(record: Record) -> str:
    """The form of a record, told by its fields."""
    fields = record.fields
    if "requested_rewrite" in fields:
        return "counterfact"
    if {"src", "alt"} <= fields.keys():
        return "mend"
    if record.has(*PROMPT) and record.has(*OLD):
        return "common"
    if any(isinstance(fields.get(name), Mapping) for name in ("locality", "portability")):
        return "knowedit"
    if "ground_truth" in fields and "target_new" in fields:
        listed = isinstance(fields["ground_truth"], list) and not record.has("locality_prompt")
        return "knowedit" if listed else "easyedit"
    if record.has(*PROMPT) and record.has(*NEW):
        return "common"
    there = ", ".join(f"`{name}`" for name in fields) or "none"
    right = "the simplest has prompt, old and new"
    if {"instruction", "output"} <= fields.keys():
        right = "alpaca-style records need two files, given as old.json,new.json"
    raise InputError(
        f"{record.where}: the form cannot be told by the fields ({there}); known forms are {', '.join(FORMS)}; {right}"
    )


def probes(record: Record, name: str) -> list[Probe]:
    """The probes in a field: one, a list of them, or either by kind. One without an answer is left out."""
    return list(_probes(record, record.fields.get(name), name))


def _probes(record: Record, value: object, name: str) -> Iterable[Probe]:
    if value is None:
        return
    if isinstance(value, list | tuple):
        for item in value:
            yield from _probes(record, item, name)
    elif not isinstance(value, Mapping):
        raise InputError(f"{record.where}: `{name}` must hold objects with `prompt` and `answer`")
    elif any(key in value for key in (*PROMPT, "New Question")):
        inner = Record(value, f"{record.where}, in `{name}`", record.number, record.tally)
        prompts = inner.texts(*PROMPT, "New Question")
        # an absent answer is a mistake, an empty one is a gap that upstream files have
        answers = inner.texts(*ANSWER) if inner.has(*ANSWER) else inner.some(*ANSWER)
        if len(prompts) == 1:
            # several answers to one prompt are spellings of one
            answers = answers[:1]
        yield from _pairwise(record, prompts, answers, name)
    else:
        for kind in value.values():
            yield from _probes(record, kind, name)


def _pairwise(record: Record, prompts: tuple[str, ...], answers: tuple[str, ...], name: str) -> list[Probe]:
    if prompts and not answers:
        record.note(f"{name} probes left out, as they have no answer")
        return []
    if len(prompts) != len(answers):
        raise InputError(f"{record.where}: `{name}` has {len(prompts)} prompts and {len(answers)} answers")
    return [Probe(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _fact(
    record: Record,
    *,
    prompt: str,
    old: str,
    new: str,
    subject: str = "",
    rephrases: Iterable[str] = (),
    locality: Iterable[Probe] = (),
    portability: Iterable[Probe] = (),
    aliases: Iterable[str] = (),
) -> Fact:
    """A fact with each alias once; what reads like the old or the new answer itself is none."""
    known = {plain(old), plain(new)}
    others = []
    for alias in aliases:
        if plain(alias) not in known:
            known.add(plain(alias))
            others.append(alias)
    return Fact(
        id=record.maybe(*ID) or str(record.number),
        prompt=prompt,
        old=old,
        new=new,
        subject=subject or record.maybe("subject"),
        rephrases=tuple(rephrases),
        locality=tuple(locality),
        portability=tuple(portability),
        aliases=tuple(others),
    )
