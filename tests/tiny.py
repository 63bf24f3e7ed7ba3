"""A tiny random Llama with a tokenizer, and facts for it, made on the spot."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PLACES = ["Arden", "Borland", "Corvia", "Dunmark", "Elvany", "Fenwick", "Galdor", "Hestia", "Irland", "Jorvik"]
OLD = ["red", "blue", "green", "white", "black", "brown", "pink", "gold", "grey", "teal"]
NEW = ["seven", "eight", "nine", "ten", "one", "two", "three", "four", "five", "six"]


def records(count: int = 8) -> list[dict[str, object]]:
    return [
        {
            "id": f"tiny-{i}",
            "subject": PLACES[i % 10] + "x" * (i // 10),
            "prompt": f"The sign of {PLACES[i % 10] + 'x' * (i // 10)} is",
            "target_old": OLD[i % 10],
            "target_new": NEW[i % 10],
            "rephrase": [f"Which sign has {PLACES[i % 10] + 'x' * (i // 10)}? It is"],
            "locality": [{"prompt": f"After {NEW[i % 10]} comes", "answer": OLD[(i + 3) % 10]}],
        }
        for i in range(count)
    ]


def facts_file(folder: Path, count: int = 8) -> Path:
    file = folder / "facts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records(count)))
    return file


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the facts; with EOS, without a pad token and without a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([json.dumps(record) for record in records(10)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def model(
    folder: Path, *, dtype: torch.dtype = torch.float32, tied: bool = True, hidden: int = 32, layers: int = 2
) -> Path:
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


ARCHITECTURES = ("llama", "gpt2", "gptj", "bloom", "mistral", "qwen2", "gpt_neox", "opt")


def architecture(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, layers: int = 2) -> Path:
    """A tiny random model of another family, with the same tokenizer."""
    torch.manual_seed(0)
    words = tokenizer()
    size = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "initializer_range": 0.2}
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": None}
    gated = {"intermediate_size": 64, "num_key_value_heads": 2}
    # Linear attention in every other block.
    linear = {f"linear_{part}_head_dim": 8 for part in ("key", "value")}
    linear |= {f"linear_num_{part}_heads": 2 for part in ("key", "value")}
    linear |= {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * (layers // 2)}
    own = {
        "llama": gated,
        "gpt2": {"n_positions": 128},
        "gptj": {"n_positions": 128, "rotary_dim": 4},
        "bloom": {},
        "mistral": gated,
        "qwen2": gated | {"tie_word_embeddings": True},
        "gpt_neox": {"intermediate_size": 64},
        "opt": {"ffn_dim": 64, "max_position_embeddings": 128, "init_std": 0.2},
        "gemma": gated | {"head_dim": 8},
        "qwen3_5_text": gated | linear,
    }[name]
    config = AutoConfig.for_model(name, vocab_size=len(words), **size, **ends, **own)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


PROMPT_IDS = (5, 9, 40, 77, 3, 120)


@torch.no_grad()
def logits(folder: Path, weights: dict[str, torch.Tensor], precision: str) -> torch.Tensor:
    """What a plain model with these weights, cast to the working precision, answers to `PROMPT_IDS`."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    for name, weight in plain.named_parameters():
        weight.copy_(weights[name])
    return plain(input_ids=torch.tensor([list(PROMPT_IDS)]), use_cache=False).logits.float()
