"""What PEFT's EVA makes of tiny-llama-untied and three batches: eva.golden.json (batches, ranks) and
eva.golden.safetensors (`<case>.<module>`: A of every module), eva/ (the folder PEFT saves of the first case).

Run: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_eva.py
"""

import shutil
from pathlib import Path

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from safetensors.torch import save_file

from make_adapters import load_base, save
from make_tiny_llama import IGNORED, versions, write_json

HERE = Path(__file__).parent
BASE = "tiny-llama-untied"
CASES = {
    "redistributed": {"rho": 2.0},
    "uniform": {"rho": 1.0},
    "whitened": {"rho": 1.5, "whiten": True, "adjust_scaling_factors": False, "use_label_mask": False},
}
TARGETS = ["q_proj", "k_proj", "o_proj", "down_proj"]


def main() -> None:
    torch.set_num_threads(1)
    batches = [batch(seed) for seed in range(3)]
    tensors, cases = {}, {}
    for name, options in CASES.items():
        model, modules = initialised(batches, options)
        found = model.peft_config["default"]
        tensors |= {f"{name}.{key}": p for key, p in modules.items()}
        cases[name] = {"eva_config": options, "ranks": {key: len(p) for key, p in modules.items()},
                       "rank_pattern": found.rank_pattern, "alpha_pattern": found.alpha_pattern}
        print(name, found.rank_pattern, found.alpha_pattern)
        if name == "redistributed":
            shutil.rmtree(HERE / "eva", ignore_errors=True)
            found.base_model_name_or_path = BASE
            save(model, HERE / "eva")
    save_file(tensors, HERE / "eva.golden.safetensors")
    (HERE / "eva.golden.safetensors").chmod(0o644)
    lists = [{key: value.tolist() for key, value in each.items()} for each in batches]
    write_json(HERE / "eva.golden.json", {"versions": versions(), "base": BASE, "targets": TARGETS, "batches": lists,
                                          "cases": cases})


def initialised(batches: list, options: dict):
    """The model, and A of every module."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="eva", task_type="CAUSAL_LM",
                        eva_config=EvaConfig(**options))
    model = get_peft_model(load_base(BASE), config)
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    return model, {key.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): p.detach().clone()
                   for key, p in model.named_parameters() if ".lora_A." in key}


def batch(seed: int) -> dict:
    """Rows of different lengths; the labels of a prompt are ignored."""
    ids = torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([24, 20, 24, 16])
    mask = (torch.arange(24)[None] < lengths[:, None]).long()
    labels = torch.where(mask == 1, ids, IGNORED)
    labels[0, :5] = IGNORED
    labels[2, :9] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    main()
