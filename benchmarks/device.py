"""What one device does: training speed on short facts, the delicate step against its floor, and memory against the plan.

    python -m benchmarks.device [--shape 135m|1b|7b] [--stage 1|2|3] [--offload none|optimizer|all] [--peak TFLOPS]

A random Llama of the shape, made on the spot in bf16, with the embedded model's tokenizer and the shipped facts. With a GPU
the figures are the GPU's; without one the same suite runs on the CPU, on a small shape, and says so.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    "10m": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 4},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
ROUNDS = 3


def made(shape: str, folder: Path) -> Path:
    """A model of random weights, in shards that a laptop can hold."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from dft_cluster.config import ModelSettings
    from dft_cluster.models.source import resolve

    words = AutoTokenizer.from_pretrained(resolve(ModelSettings()))
    config = LlamaConfig(
        vocab_size=len(words), tie_word_embeddings=False, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, **SHAPES[shape],
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    words.save_pretrained(folder)
    return folder


def seconds(work: Callable[[], Any]) -> float:
    """Of the second run, when everything is where it will be."""
    work()
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy, read and written, in blocks no cache holds."""
    here = torch.empty(1 << 27, device=device)
    there = torch.empty_like(here)
    return 2 * here.numel() * 4 / seconds(lambda: there.copy_(here))


def matmul_peak(device: torch.device) -> float:
    """Floating-point operations a second of a large bf16 product: what the device can do here."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


def measure(shape: str, stage: int, offload: str, peak: float | None) -> None:
    from dft_cluster.config_file import validate
    from dft_cluster.facts.pairs import given
    from dft_cluster.local import in_this_process
    from dft_cluster.methods.prepare import prepare
    from dft_cluster.methods.training_set import Drawn, examples
    from dft_cluster.planning.plan import plan
    from dft_cluster.ranks.rank import Rank, Source
    from dft_cluster.runs.console import Console

    with tempfile.TemporaryDirectory() as folder:
        model = made(shape, Path(folder) / "model")
        tree = {
            "model": {"name": str(model)},
            "facts": {"limit": 64},
            "method": {"top": 0.05, "rounds": ROUNDS},
            "train": {"epochs": 1, "batch": 64, "zero_stage": stage, "offload": offload, "lr": 1e-5},
            "cluster": {"groups": 1, "ranks_per_group": 1, "buffers": "host"},
            "run": {"dir": folder},
            "track": {"wandb": "off"},
        }
        config = validate(tree)
        prepared = prepare(config)
        planned = plan(prepared.seat(1))
        elements = sum(p.numel for p in prepared.parameters)
        pairs = given(prepared.facts)
        taught = {side: examples(pairs, side, prepared.layout, Drawn([], [])) for side in ("old", "new")}
        tokens = sum(len(e.ids) for e in taught["new"])
        with in_this_process(prepared.seat(1), Source(config.model), Console(lambda _: None)) as team:
            rank = team.everyone._rank
            device = rank._engine.device
            speeds = {}
            for name, most in (("one padded batch", None), ("like lengths together, 1024 tokens", 1024)):
                rank._engine.train = config.train.model_copy(update={"tokens_per_batch": most})
                took = seconds(lambda: team.everyone.call(Rank.fine_tune, taught["new"], 0, 1, "bench"))
                speeds[name] = tokens / took
            rank._engine.train = config.train
            job = replace(prepared.seat(1).job(Source(config.model)), **taught)
            outcomes = [prepared.method.round(team, job, number) for number in range(1, ROUNDS + 1)]
            memory = team.everyone.call(Rank.peak_memory)[0]
            floor, flops = bandwidth(torch.device("cpu")), peak * 1e12 if peak else matmul_peak(device)
    step = outcomes[-1].seconds
    delicate = sum(step[name] for name in ("exchange", "select", "apply"))
    # Read: masters twice, θ kept twice, scores three times; written: scores twice, masters once. 4 bytes each.
    least = 10 * 4 * elements / floor
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU ({platform.machine()}), which is not a GPU figure"
    )
    print(
        f"{shape}: {elements} elements, bf16, ZeRO-{stage}, offload {offload}, {torch.get_num_threads()} threads, {where}"
    )
    for name, speed in speeds.items():
        print(
            f"fine-tuning, {name}: {speed:.0f} tokens/s, {100 * 6 * elements * speed / flops:.1f} % of {flops / 1e12:.1f} TFLOP/s"
        )
    print(f"exchange + select + apply: {delicate:.2f} s; {least:.2f} s to move as many bytes at {floor / 1e9:.1f} GB/s")
    counted = "allocated by torch, without the process's own" if device.type == "cuda" else "of the process"
    print(f"peak memory: {memory / 2**30:.2f} GiB ({counted}); planned:\n{planned.text()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What one device does.")
    parser.add_argument("--shape", choices=SHAPES, default="7b" if torch.cuda.is_available() else "10m")
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=3 if torch.cuda.is_available() else 1)
    # 7 billion elements are 14 GB of weights, as much of gradients, and 84 GB of masters and moments.
    small = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 128 * 2**30
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), default="optimizer" if small else "none")
    parser.add_argument("--peak", type=float, help="the device's bf16 TFLOP/s; else measured by a product")
    asked = parser.parse_args()
    measure(asked.shape, asked.stage, asked.offload, asked.peak)


if __name__ == "__main__":
    main()
