import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dft_cluster.config import ModelSettings
from dft_cluster.errors import InputError
from dft_cluster.models import source
from dft_cluster.models.structure import parameters
from tests import tiny


def refused(**settings):
    with pytest.raises(InputError) as caught:
        source.resolve(ModelSettings(**settings))
    return str(caught.value)


def test_a_folder_is_itself(tmp_path):
    folder = tiny.model(tmp_path)
    assert source.resolve(ModelSettings(name=str(folder))) == folder


def test_a_pickle_is_never_loaded(tmp_path):
    folder = tiny.model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    told = refused(name=str(folder))
    assert "pytorch_model.bin" in told and "pickle" in told and "safetensors" in told


def test_a_folder_without_weights_or_config(tmp_path):
    assert "config.json" in refused(name=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "no *.safetensors" in refused(name=str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_id(tmp_path):
    told = refused(name=str(tmp_path / "none"))
    assert "no folder here" in told and "smollm2-135m" in told


def test_a_gguf_file_that_is_not_there(tmp_path):
    assert "no file 'x.gguf'" in refused(name=str(tiny.model(tmp_path)), gguf="x.gguf")


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DFT_CACHE", str(tmp_path))
    assert source.cache_folder() == tmp_path
    monkeypatch.delenv("DFT_CACHE")
    assert source.cache_folder().name == "dft_cluster"


def test_a_dequantized_model_is_made_once_and_kept_by_content(tmp_path, monkeypatch):
    """What stands in the cache under a file's digest is taken as it is."""
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"x" * 3_000_000)
    made = tmp_path / "cache" / f"m-{source._digest(gguf)}"
    made.mkdir(parents=True)
    assert source.dequantized(gguf) == made
    for place in (0, 1_500_000, 2_999_999):
        other = bytearray(b"x" * 3_000_000)
        other[place] = 0
        (tmp_path / "other.gguf").write_bytes(other)
        assert source._digest(tmp_path / "other.gguf") != source._digest(gguf)
    (tmp_path / "other.gguf").write_bytes(b"x" * 3_000_001)
    assert source._digest(tmp_path / "other.gguf") != source._digest(gguf)


def test_a_failed_dequantizing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"not a gguf file")
    with pytest.raises(InputError, match=r"model\.gguf: .*m\.gguf cannot be read"):
        source.dequantized(tmp_path / "m.gguf")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_embedded_model(embedded_model):
    assert sum(p.numel for p in parameters(embedded_model)) == 134_515_008
    words = AutoTokenizer.from_pretrained(embedded_model)
    assert words("a b")["input_ids"] == words("a b", add_special_tokens=False)["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(embedded_model, use_safetensors=True).config.tie_word_embeddings
