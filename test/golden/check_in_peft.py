"""Loads an adapter folder into real PEFT and writes the logits: proof that a folder written by Heddle is a PEFT folder.

usage: python check_in_peft.py ADAPTER_DIR BASE IDS.json OUT [--threads N]

BASE is a Hugging Face folder or a .gguf file. IDS.json holds [[id, ...], ...] or {"ids": [[id, ...], ...]}.
OUT ending in .safetensors gets `logits` [batch, time, vocab] f32, else JSON {"shape", "logits": flat list, ...}.

Exit status 1 when anything is not as PEFT would have written it: a warning (PEFT warns of missing keys and of
unknown configuration), a key too many or too few, a shape or a value that changed on loading.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

# Raised by the libraries about themselves, whatever the adapter holds.
HARMLESS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    stored_ids = json.loads(args.ids.read_text())
    ids = torch.tensor(stored_ids["ids"] if isinstance(stored_ids, dict) else stored_ids)
    base = load_base(args.base)
    with torch.no_grad():
        base_logits = base(input_ids=ids).logits

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(args.adapter)
        model = PeftModel.from_pretrained(base, args.adapter, config=config).eval()
    problems = [f"warning: {w.message}" for w in caught if not issubclass(w.category, HARMLESS)]
    # PEFT adds a copy of the base's embedding when that is adapted; a folder is complete without it.
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems += compare(load_file(args.adapter / "adapter_model.safetensors"), loaded)

    with torch.no_grad():
        logits = model(input_ids=ids).logits
    if not torch.isfinite(logits).all():
        problems.append("logits that are not finite")
    summary = {
        "adapter": str(args.adapter),
        "peft_type": str(config.peft_type.value),
        "tensors": len(loaded),
        "changed": (logits - base_logits).abs().max().item(),
        "problems": problems,
    }
    if args.out.suffix == ".safetensors":
        save_file({"logits": logits.contiguous()}, args.out)
    else:
        values = logits.flatten().tolist()
        args.out.write_text(json.dumps({**summary, "shape": list(logits.shape), "logits": values}) + "\n")
    print(json.dumps(summary))
    return 1 if problems else 0


def load_base(path: Path):
    """f32, eager attention; a base with a tensor missing would make every later number meaningless."""
    folder, gguf = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **gguf
    )
    if info["missing_keys"] or info["unexpected_keys"]:
        sys.exit(f"{path}: {info}")
    return model.eval()


def compare(stored: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> list[str]:
    """PEFT ignores keys it has no place for, so its own silence is not enough."""
    problems = [f"unexpected key: {key}" for key in sorted(stored.keys() - loaded.keys())]
    problems += [f"missing key: {key}" for key in sorted(loaded.keys() - stored.keys())]
    for key in sorted(stored.keys() & loaded.keys()):
        if stored[key].shape != loaded[key].shape:
            problems.append(f"{key}: shape {list(stored[key].shape)} became {list(loaded[key].shape)}")
        elif not torch.equal(stored[key].to(loaded[key].dtype), loaded[key]):
            problems.append(f"{key}: values changed on loading")
    return problems


if __name__ == "__main__":
    sys.exit(main())
