"""Every method with its settings for the tiny model, and θ as a run leaves it."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dft_cluster.methods.prepare import prepare
from dft_cluster.patch import Folder
from dft_cluster.runs.parts import Part
from dft_cluster.runs.record import Record
from tests.integration import runs

ONE = {"groups": 1, "ranks_per_group": 1, "threads": 1}
Tree = dict[str, dict[str, Any]]

EDITING = {"steps": 5, "contexts": 2, "key_contexts": 3, "context_tokens": 3}

METHODS: dict[str, Tree] = {
    "dft": {"method": {"name": "dft", "top": 0.1}},
    "full": {"method": {"name": "full"}},
    "lora": {"method": {"name": "lora"}, "lora": {"rank": 4}},
    "dft-lora": {"method": {"name": "dft", "top": 0.1}, "train": {"adapter": "lora"}},
    "ft_c": {"method": {"name": "ft_c"}, "ft_c": {"epsilon": 1e-3}},
    "ft_c-layer": {"method": {"name": "ft_c", "layers": [1]}, "ft_c": {"epsilon": 1e-3}},
    "f_learning": {"method": {"name": "f_learning"}},
    "f_learning-lora-full": {"method": {"name": "f_learning"}, "f_learning": {"forget": "lora"}},
    "f_learning-full-lora": {"method": {"name": "f_learning"}, "f_learning": {"learn": "lora"}},
    "f_learning-lora-lora": {"method": {"name": "f_learning"}, "f_learning": {"forget": "lora", "learn": "lora"}},
    "rome": {"method": {"name": "rome"}, "editing": EDITING},
    # So little covariance that the keys of so small a model count beside it, and values that get somewhere.
    "memit": {"method": {"name": "memit"}, "editing": {**EDITING, "covariance_weight": 0.5, "clamp": 20.0}},
    "interpolate": {"method": {"name": "interpolate"}},
    "interpolate-lora": {"method": {"name": "interpolate"}, "train": {"adapter": "lora"}},
    "random": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "random"}},
    "new": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "new"}},
    "same": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "same"}},
    "random-lora": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "random"}, "train": {"adapter": "lora"}},
    "new-lora": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "new"}, "train": {"adapter": "lora"}},
    "same-lora": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "same"}, "train": {"adapter": "lora"}},
    "by-new": {"method": {"name": "dft", "top": 0.1}, "dft": {"by": "new"}},
    "same-by-new": {"method": {"name": "dft", "top": 0.1}, "dft": {"mask": "same", "by": "new"}},
    "reuse": {"method": {"name": "dft", "top": 0.1}, "dft": {"reuse": 2, "old_epochs": 1}},
    "scales": {"method": {"name": "dft", "top": 0.1}, "dft": {"scales": [0.5, 1, 2]}},
    "renew": {"method": {"name": "dft", "top": 0.1}, "dft": {"renew": True}},
    "drawn": {
        "method": {"name": "dft", "top": 0.1},
        "train": {"rephrases": 1, "contexts": 2, "keep": 4, "keep_tokens": 5},
    },
    "rest": {"method": {"name": "dft", "top": 0.1}, "dft": {"rest": 0.3, "reuse": 2}},
    "outside": {"method": {"name": "dft", "top": 0.1, "scale": 2}, "dft": {"rest": 0.3, "outside": 0.1}},
    "outside-same": {
        "method": {"name": "dft", "top": 0.1},
        "dft": {"mask": "same", "by": "new", "rest": 0.3, "outside": 0},
    },
    "rest-lora": {"method": {"name": "dft", "top": 0.1}, "train": {"adapter": "lora"}, "dft": {"rest": 0.3}},
    "within": {"method": {"name": "dft", "top": 0.1}, "dft": {"rest": 1}, "train": {"within": 1e-3}},
    "interpolate-within": {"method": {"name": "interpolate"}, "interpolate": {"alpha": 1}, "train": {"within": 1e-3}},
    "f_learning-within": {"method": {"name": "f_learning"}, "train": {"within": 1e-3}},
    "difference": {"method": {"name": "dft", "top": 0.1}, "dft": {"add": "difference"}},
}


def settings(model: Path, facts: Path, folder: Path, named: str, /, **more: dict[str, Any]) -> Any:
    tree: Tree = {"cluster": ONE, **METHODS[named]}
    for name, section in more.items():
        tree[name] = {**tree.get(name, {}), **section}
    rounds = {} if named in ("rome", "memit") else {"rounds": 2}
    tree["method"] = {**rounds, **tree["method"]}
    return runs.config(model, facts, folder, **tree)


def theta(record: Record, model: Path, number: int) -> dict[str, torch.Tensor]:
    """θ after a round, by parameter, out of the run's own checkpoints."""
    base, found = Folder(model), {}
    chain = record.checkpoints.chain(number) if number else []
    parts = [Part(record.storage.fetch(name, model)) for names in chain for name in names]
    for p in prepare(record.config).parameters:
        found[p.name] = base.flat(p.saved, 0, p.numel).clone()
        for part in parts:
            part.overlay(p.index, 0, found[p.name])
        found[p.name] = found[p.name].reshape(p.shape)
    return found


def one_round(model: Path, facts: Path, folder: Path, named: str, /, **more: dict[str, Any]) -> dict[str, torch.Tensor]:
    """θ after round 1 of a run of its own."""
    name = {"run": {"name": f"{named}-{len(list(folder.glob('*')))}"}}
    tree = settings(model, facts, folder, named, **{"method": {"rounds": 1}, **name, **more})
    return theta(runs.alone(tree), model, 1)


def swapped(facts: Path, folder: Path) -> Path:
    """The same facts with old and new answer changed about: plain fine-tuning on them is training on the old ones."""
    lines = [json.loads(line) for line in facts.read_text().splitlines()]
    for line in lines:
        line["target_new"], line["target_old"] = line["target_old"], line["target_new"]
    file = folder / "swapped.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights.values()])


def deltas(model: Path, facts: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """θ of the start, Δold and Δnew, from two plain fine-tunes."""
    start = flat(start_of(model))
    new, old = (flat(one_round(model, taught, folder, "full")) - start for taught in (facts, swapped(facts, folder)))
    return start, old, new


def start_of(model: Path) -> dict[str, torch.Tensor]:
    return {
        n: w.detach() for n, w in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters()
    }
