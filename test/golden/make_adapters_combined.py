"""Combines two adapters of make_lora_peft.py with PEFT's add_weighted_adapter.

adapters-combined.golden.safetensors   `<case>.logits` of every eighth position, `<case>.delta` at one module
adapters-combined.golden.json          the cases: names, weights, options

Run after make_lora_peft.py: OMP_NUM_THREADS=1 python make_adapters_combined.py
"""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from make_tiny_llama import load, versions, write_json

HERE = Path(__file__).parent
NAMES = ["peft-all-linear", "peft-rslora"]
SITE = "model.layers.1.self_attn.v_proj"

CASES = {
    "linear": {"combination_type": "linear"},
    "cat": {"combination_type": "cat"},
    "svd": {"combination_type": "svd"},
    "svd of rank 6": {"combination_type": "svd", "svd_rank": 6},
    "ties": {"combination_type": "ties", "density": 0.5},
    "ties by frequency": {"combination_type": "ties", "density": 0.7, "majority_sign_method": "frequency"},
    "ties, all kept": {"combination_type": "ties", "density": 1.0},
    "ties_svd": {"combination_type": "ties_svd", "density": 0.4},
    "magnitude_prune": {"combination_type": "magnitude_prune", "density": 0.3},
    "magnitude_prune_svd": {"combination_type": "magnitude_prune_svd", "density": 0.3},
}
WEIGHTS = [0.7, -0.4]


def main() -> None:
    torch.set_num_threads(1)
    ids = load_file(HERE / "tiny-llama.golden.safetensors")["ids"].long()
    model = PeftModel.from_pretrained(load(HERE / "tiny-llama"), HERE / NAMES[0], adapter_name=NAMES[0])
    model.load_adapter(HERE / NAMES[1], adapter_name=NAMES[1])
    model.eval()
    tensors, report = {}, {"versions": versions(), "adapters": NAMES, "weights": WEIGHTS, "site": SITE, "cases": {}}
    for i, (name, options) in enumerate(CASES.items()):
        combined = f"combined{i}"
        model.add_weighted_adapter(NAMES, WEIGHTS, combined, **options)
        model.set_adapter(combined)
        tensors |= results(model, name, combined, ids)
        config = model.peft_config[combined]
        report["cases"][name] = {"options": options, "r": config.r, "lora_alpha": config.lora_alpha}
    # Several adapters active at once add up.
    model.base_model.set_adapter(NAMES)
    with torch.no_grad():
        tensors["both.logits"] = model(input_ids=ids).logits[:, ::8].contiguous()
    save_file(tensors, HERE / "adapters-combined.golden.safetensors")
    write_json(HERE / "adapters-combined.golden.json", report)
    (HERE / "adapters-combined.golden.safetensors").chmod(0o644)


def results(model, name: str, adapter: str, ids: torch.Tensor) -> dict:
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, ::8]
    delta = model.get_submodule(f"base_model.model.{SITE}").get_delta_weight(adapter)
    return {f"{name}.logits": logits.contiguous(), f"{name}.delta": delta.detach().contiguous()}


if __name__ == "__main__":
    main()
