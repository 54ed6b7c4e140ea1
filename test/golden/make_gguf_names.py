"""What the gguf package calls the parameters of every architecture that GGUF has a table for, by Hugging Face's names.

Run with gguf and safetensors, after make_models.py: python test/golden/make_gguf_names.py
Writes gguf_names.json: {architecture: {model: golden model, names: {Hugging Face's: GGUF's}}}.
"""

import json
import pathlib

import gguf
from safetensors import safe_open

HERE = pathlib.Path(__file__).parent
MODELS = {
    "LLAMA": "llama-biased", "QWEN2": "qwen2", "QWEN3": "qwen3", "GEMMA": "gemma", "GEMMA2": "gemma2",
    "GEMMA3": "gemma3", "PHI2": "phi", "PHI3": "phi3",
}


def main():
    golden = {}
    for arch, model in MODELS.items():
        arch = gguf.MODEL_ARCH[arch]
        table = gguf.get_tensor_name_map(arch, 2)
        with safe_open(HERE / "models" / model / "model.safetensors", "pt") as file:
            names = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in file.keys()}
        assert None not in names.values(), names
        golden[gguf.MODEL_ARCH_NAMES[arch]] = {"model": model, "names": names}
    (HERE / "gguf_names.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
