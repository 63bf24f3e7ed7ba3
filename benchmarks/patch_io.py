"""How long diff, apply and revert take against plain reading and writing; how large patches of a 7B are.

    python benchmarks/patch_io.py time --shape 135m --dtype bfloat16 --share 0.05
    python benchmarks/patch_io.py size

Weights are random in real shapes; a share of the elements, spread evenly, gets other bits.
"""

import argparse
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from dft_cluster.patch import apply, diff, make, revert
from dft_cluster.patch.parallel import threads

BUFFER = 4 << 20
Shapes = dict[tuple[int, int], int]


def llama(hidden: int, inner: int, keys: int, layers: int, vocabulary: int, tied: bool) -> Shapes:
    """The matrices of a Llama-like model, and how often each shape occurs (norms are in one matrix)."""
    shapes: Shapes = {}
    for shape, count in (
        ((vocabulary, hidden), 1 if tied else 2),
        ((hidden, hidden), 2 * layers),
        ((keys, hidden), 2 * layers),
        ((inner, hidden), 2 * layers),
        ((hidden, inner), layers),
        ((2 * layers + 1, hidden), 1),
    ):
        shapes[shape] = shapes.get(shape, 0) + count
    return shapes


MODELS = {
    "10m": llama(256, 768, 64, 8, 8192, tied=True),
    "135m": llama(576, 1536, 192, 30, 49152, tied=True),
    "1b": llama(2048, 8192, 512, 16, 128256, tied=True),
    "7b": llama(4096, 11008, 4096, 32, 32000, tied=False),
}


def edited(tensor: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    bits = tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32).clone()
    bits[torch.rand(bits.shape, generator=torch.Generator().manual_seed(seed)) < share] ^= 1
    return bits.view(tensor.dtype)


def write_models(work: Path, shapes: Shapes, dtype: torch.dtype, share: float) -> None:
    """`base` and `other`, one weight file for each shape."""
    for folder in ("base", "other"):
        (work / folder).mkdir()
    for number, (shape, count) in enumerate(shapes.items()):
        draw = torch.Generator().manual_seed(number)
        tensors = {f"layers.{i}.m{number}": torch.randn(shape, generator=draw).to(dtype) for i in range(count)}
        save_file(tensors, work / "base" / f"{number}.safetensors")
        for i, name in enumerate(tensors):
            tensors[name] = edited(tensors[name], share, i)
        save_file(tensors, work / "other" / f"{number}.safetensors")


def read_and_write(sources: Sequence[Path], size: int, target: Path) -> None:
    """Read the files through a buffer, write as many of their bytes as `size` says, fsync."""
    buffer = bytearray(BUFFER)
    left = size
    with target.open("wb", buffering=0) as new:
        for source in sources:
            with source.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    left -= new.write(memoryview(buffer)[: min(count, left)])
        assert left == 0
        os.fsync(new.fileno())


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def size_of(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@dataclass(frozen=True)
class Job:
    """An operation, the model files it is about, and what it must read and write at the least."""

    name: str
    run: Callable[[Path], object]
    files: list[Path]
    inputs: list[Path]
    written: int


def jobs(work: Path) -> list[Job]:
    base, other, patched, patch = (work / name for name in ("base", "other", "patched", "patch"))
    diff(base, other, patch)
    apply(patch, base, patched)
    model, both = size_of(weights(base)), [*weights(base), *weights(other)]
    return [
        Job("diff", lambda out: diff(base, other, out), both, both, size_of([patch])),
        Job("apply", lambda out: apply(patch, base, out), weights(base), [*weights(base), patch], model),
        Job(
            "revert",
            lambda out: revert(patch, patched, out),
            weights(patched),
            [*weights(patched), patch],
            model,
        ),
    ]


def measure(job: Job, work: Path, repeats: int) -> list[float]:
    """The best of the operation, of copying its model files, and of its bare input and output."""
    out = work / "out"
    runs = (
        lambda: job.run(out),
        lambda: read_and_write(job.files, size_of(job.files), out),
        lambda: read_and_write(job.inputs, job.written, out),
    )
    taken: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for run, times in zip(runs, taken, strict=True):
            times.append(seconds(run))
            remove(out)
    return [min(times) for times in taken]


def report_times(given: argparse.Namespace) -> None:
    shapes, dtype = MODELS[given.shape], getattr(torch, given.dtype)
    elements = sum(rows * columns * count for (rows, columns), count in shapes.items())
    print(f"{given.shape}: {elements} elements, {given.dtype}, {given.share:.0%} changed; {threads()} threads,")
    print(f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, page cache warm,")
    print(f"best of {given.repeats}\n")
    print("| | ours (s) | copying its model files (s) | ratio | its bare input and output (s) | ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.dir) as work:
        write_models(Path(work), shapes, dtype, given.share)
        for job in jobs(Path(work)):
            ours, copy, least = measure(job, Path(work), given.repeats)
            ratios = (f"{floor:.2f} | {ours / floor:.2f}" for floor in (copy, least))
            print(f"| {job.name} | {ours:.2f} | {' | '.join(ratios)} |")


def patch_size(work: Path, shape: tuple[int, int], share: float, old_bits: bool) -> int:
    base = work / "base"
    base.mkdir()
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"layers.0.m": tensor}, base / "model.safetensors")
    changed = edited(tensor, share, 1)
    size = make(base, lambda _: changed, work / "patch", {}, old_bits).size
    remove(base)
    return size


def report_sizes(given: argparse.Namespace) -> None:
    """One patch for each shape of a 7B model, times how often the shape occurs."""
    shapes = MODELS["7b"]
    model = 2 * sum(rows * columns * count for (rows, columns), count in shapes.items())
    print(f"bfloat16 model of {model / 1e9:.3f} GB\n")
    print("| changed | GB with old bits | of the model | GB without | of the model |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.dir) as work:
        for share in (0.01, 0.05, 0.2, 1.0):
            whole, without = (
                sum(n * patch_size(Path(work), shape, share, old_bits) for shape, n in shapes.items())
                for old_bits in (True, False)
            )
            first, second = (f"{size / 1e9:.3f} | {size / model:.4f}" for size in (whole, without))
            print(f"| {share:.0%} | {first} | {second} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "size"))
    parser.add_argument("--shape", choices=MODELS, default="135m")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", help="where the models are written; needs five times their size")
    given = parser.parse_args()
    (report_times if given.what == "time" else report_sizes)(given)


if __name__ == "__main__":
    main()
