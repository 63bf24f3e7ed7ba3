import json
import xml.etree.ElementTree as ET

import pytest
import torch

from dft_cluster.__main__ import main
from dft_cluster.patch import diff, inspect, make
from dft_cluster.patch.inspect import place


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.layers.12.self_attn.q_proj.weight", ("12", "self_attn.q_proj")),
        ("transformer.h.0.attn.c_attn.bias", ("0", "attn.c_attn.bias")),
        ("h.3.ln_1.weight", ("3", "ln_1")),
        ("model.layers.3.mlp.experts.17.up_proj.weight", ("3", "mlp.experts.*.up_proj")),
        ("model.embed_tokens.weight", ("-", "model.embed_tokens")),
        ("lm_head.weight", ("-", "lm_head")),
        ("0.weight", ("0", "weight")),
        ("7", ("-", "*")),
        ("layers." + "9" * 5000 + ".weight", ("-", "layers.*")),
    ],
)
def test_places(name, wanted):
    assert place(name) == wanted


def test_counts(save, tensors, tmp_path):
    base = save("base", tensors)
    changed = tensors["model.layers.1.self_attn.q_proj.weight"].clone()
    changed[0, :3] = 5
    made = make(base, {"model.layers.1.self_attn.q_proj.weight": changed}.get, tmp_path / "p", {"method": "dft"})
    seen = inspect(made.path)
    assert seen.total.changed == 3
    assert {layer: count.changed for layer, count in seen.by_layer.items()} == {"-": 0, "0": 0, "1": 3}
    assert seen.by_kind["self_attn.q_proj"].changed == 3
    assert seen.by_kind["self_attn.q_proj"].elements == 16 * 16 + 33 * 7
    assert sum(count.elements for count in seen.grid.values()) == made.elements
    assert seen.size == made.path.stat().st_size


def test_text_and_json_and_picture(save, tensors, edit, tmp_path, capsys):
    patch = edit(save("base", tensors), "patch")
    assert main(["patch", "inspect", str(patch), "--plot", str(tmp_path / "where.svg")]) == 0
    text = capsys.readouterr().out
    seen = inspect(patch)
    for part in (
        seen.base_fingerprint,
        seen.result_fingerprint,
        "dft",
        "0.05",
        "mlp.up_proj",
        f"{seen.size} bytes",
    ):
        assert part in text
    picture = ET.parse(tmp_path / "where.svg").getroot()
    cells = [rect for rect in picture.iter() if rect.tag.endswith("rect") and len(rect)]
    assert len(cells) == len(seen.grid)
    assert len({cell.get("fill") for cell in cells}) > 2
    assert main(["patch", "inspect", str(patch), "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert sum(cell["changed"] for cell in parsed["grid"]) == seen.total.changed
    assert parsed["metadata"]["method"] == "dft"


def test_names_from_elsewhere_harm_neither_terminal_nor_picture(save, tmp_path, capsys):
    name = 'evil\x1b[2J.layers.0.<script>&"\x00'
    base, other = save("base", {name: torch.zeros(3)}), save("other", {name: torch.ones(3)})
    made = diff(base, other, tmp_path / "patch", {"method": "\x1b]0;x\x07"})
    assert main(["patch", "inspect", str(made.path), "--plot", str(tmp_path / "where.svg")]) == 0
    assert "\x1b" not in capsys.readouterr().out
    text = (tmp_path / "where.svg").read_text()
    assert "<script>" not in text
    assert ET.fromstring(text).tag.endswith("svg")
    assert main(["patch", "verify", str(made.path), "--model", str(base)]) == 0
    assert main(["patch", "apply", str(made.path), "--model", str(other), "--out", str(tmp_path / "out")]) == 2
    assert main(["patch", "compose", str(made.path), str(made.path), "--rule", "sum", "--out", str(base)]) == 2
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
