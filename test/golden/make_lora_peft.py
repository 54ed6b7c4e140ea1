"""Makes LoRA adapters on tiny-llama as PEFT itself makes and saves them, and what PEFT and torch compute with them.

peft-all-linear/  r 4, alpha 8, "all-linear"
peft-rslora/      r 4, alpha 8, use_rslora, target_modules a list of suffixes
peft-regex/       r 4, alpha 8, target_modules a regular expression
peft-patterns/    rank_pattern, alpha_pattern, layers_to_transform, exclude_modules

Run after make_tiny_llama.py: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_lora_peft.py
(the hash seed fixes the order in which PEFT writes target_modules, a set)
"""

import re
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from make_tiny_llama import load, relative, versions, write_json

HERE = Path(__file__).parent
BASE = HERE / "tiny-llama"
SHAPE = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
ALL_LINEAR = {**SHAPE, "target_modules": "all-linear"}
REGEX = r"model\.layers\.1\.(self_attn\.(q|k)_proj|mlp\.gate_proj)"
PATTERNS = {
    **SHAPE,
    "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
    "exclude_modules": ["self_attn.o_proj"],
    "layers_to_transform": [1],
    "rank_pattern": {"q_proj": 2, r".*\.mlp\..*": 6},
    "alpha_pattern": {"down_proj": 3},
}
MERGED_SITES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
STEPS = 5
CLIP = 1.0
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def main() -> None:
    torch.set_num_threads(1)
    golden = load_file(HERE / "tiny-llama.golden.safetensors")
    ids, labels = golden["ids"].long(), golden["labels"].long()
    report = {"versions": versions(), "adapters": {}}
    for seed, (name, options) in enumerate({
        "peft-all-linear": ALL_LINEAR,
        "peft-rslora": {**SHAPE, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "mlp.down_proj"]},
        "peft-regex": {**SHAPE, "target_modules": REGEX},
        "peft-patterns": PATTERNS,
    }.items()):
        report["adapters"][name] = make_adapter(name, options, seed, ids, golden["logits"])
    report["training"] = train(ids, labels)
    report["targets"] = {name: resolve(**case) for name, case in TARGETS.items()}
    write_json(HERE / "peft.golden.json", report)
    for name, adapter in report["adapters"].items():
        print(name, adapter)
    print(report["training"]["losses"], report["training"]["gradient_norms"])


def make_adapter(name: str, options: dict, seed: int, ids: torch.Tensor, base_logits: torch.Tensor) -> dict:
    torch.manual_seed(seed)
    model = get_peft_model(load(BASE), LoraConfig(**options)).eval()
    fresh = model(input_ids=ids).logits
    assert torch.equal(fresh, base_logits), "an untrained adapter must not change anything"
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_B" in key:
                p.copy_(0.1 * torch.randn_like(p))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    # PEFT would store the path of this checkout.
    model.peft_config["default"].base_model_name_or_path = BASE.name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()

    model = reload(name)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    tensors = {"logits": logits.contiguous()}
    merged = reload(name).merge_and_unload()
    with torch.no_grad():
        merged_logits = merged(input_ids=ids).logits
    if name == "peft-all-linear":
        tensors |= {f"merged.{site}.weight": merged.get_submodule(site).weight.detach() for site in MERGED_SITES}
    save_file(tensors, HERE / f"{name}.golden.safetensors")
    return {
        "sites": sites(model),
        "trainable": model.get_nb_trainable_parameters()[0],
        "scaling": {site: model.get_submodule(f"base_model.model.{site}").scaling["default"] for site in sites(model)},
        "changed": relative(logits, base_logits),
        "merged_against_adapter": relative(merged_logits, logits),
    }


def reload(name: str) -> PeftModel:
    return PeftModel.from_pretrained(load(BASE), HERE / name, is_trainable=True).eval()


def train(ids: torch.Tensor, labels: torch.Tensor) -> dict:
    """Five AdamW steps on one batch from peft-all-linear, and the gradients of the first step before clipping."""
    model = reload("peft-all-linear").train()
    # The names that the adapter's file uses.
    names = {p: n.replace(".default", "") for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(list(names), **ADAMW)
    losses, norms, tensors = [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        if step == 0:
            tensors |= {f"gradient.{n}": p.grad.clone() for p, n in names.items()}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(list(names), CLIP).item())
        optimizer.step()
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    losses.append(output.loss.item())
    tensors |= {f"final.{n}": p.detach() for p, n in names.items()}
    tensors["final.logits"] = output.logits.contiguous()
    save_file(tensors, HERE / "peft-all-linear.training.safetensors")
    return {"optimizer": {**ADAMW, "betas": list(ADAMW["betas"])}, "clip": CLIP, "losses": losses,
            "gradient_norms": norms, "dtype_of_adapter": str(next(iter(names)).dtype)}


def sites(model: PeftModel) -> list[str]:
    return [n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")]


TARGETS = {
    "all-linear": {"options": {"target_modules": "all-linear"}},
    "all-linear in capitals": {"options": {"target_modules": "ALL-LINEAR"}},
    "all-linear, untied head": {"options": {"target_modules": "all-linear"}, "base": "tiny-llama-untied"},
    "head by name, untied": {"options": {"target_modules": ["lm_head"]}, "base": "tiny-llama-untied"},
    "default for llama": {"options": {"target_modules": None}},
    "one suffix": {"options": {"target_modules": ["q_proj"]}},
    "suffix with its parent": {"options": {"target_modules": ["mlp.down_proj", "1.self_attn.v_proj"]}},
    "full path": {"options": {"target_modules": ["model.layers.0.mlp.up_proj"]}},
    "half a name": {"options": {"target_modules": ["proj"]}},
    "one known, one unknown": {"options": {"target_modules": ["q_proj", "query"]}},
    "string without a dot": {"options": {"target_modules": "q_proj"}},
    "regex": {"options": {"target_modules": REGEX}},
    "regex must match all of the path": {"options": {"target_modules": r"layers\.1\..*"}},
    "regex that matches other modules too": {"options": {"target_modules": r".*layers\.0.*"}},
    "exclude by suffix": {"options": {"target_modules": "all-linear", "exclude_modules": ["mlp.gate_proj", "k_proj"]}},
    "exclude by regex": {"options": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"}},
    "exclude all": {"options": {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}},
    "layers": {"options": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1}},
    "layers with pattern": {"options": {"target_modules": ["q_proj"], "layers_to_transform": [0],
                                        "layers_pattern": "layers"}},
    "layers with wrong pattern": {"options": {"target_modules": ["q_proj"], "layers_to_transform": [0],
                                              "layers_pattern": "blocks"}},
    "full path passes the layer filter": {"options": {"target_modules": ["model.layers.0.mlp.up_proj", "q_proj"],
                                                      "layers_to_transform": [1]}},
    "layers with regex": {"options": {"target_modules": REGEX, "layers_to_transform": [1]}},
    "pattern without layers": {"options": {"target_modules": ["q_proj"], "layers_pattern": "layers"}},
    "rank pattern, first key wins": {"options": {"target_modules": ["q_proj", "v_proj"],
                                                 "rank_pattern": {r".*\.1\..*": 3, "q_proj": 2}}},
    "alpha pattern, rslora": {"options": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True,
                                          "alpha_pattern": {"v_proj": 16}, "rank_pattern": {"v_proj": 16}}},
    "pattern must end the path": {"options": {"target_modules": ["q_proj"], "rank_pattern": {"self_attn": 2}}},
    "norm saved beside": {"options": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}},
    "rank zero": {"options": {"target_modules": ["q_proj"], "r": 0}},
    "unknown initialisation": {"options": {"target_modules": ["q_proj"], "init_lora_weights": "zeros"}},
}


def resolve(options: dict, base: str = "tiny-llama") -> dict:
    """What PEFT does with a choice of targets: the sites it adapts, or its refusal."""
    result = {"base": base, "options": options}
    try:
        model = get_peft_model(load(HERE / base), LoraConfig(**{**SHAPE, **options}))
    except ValueError as error:
        return {**result, "error": type(error).__name__, "message": re.sub(r"\s+", " ", str(error))}
    found = sites(model)
    layers = {site: model.get_submodule(f"base_model.model.{site}") for site in found}
    return {
        **result,
        "sites": found,
        "ranks": [layer.r["default"] for layer in layers.values()],
        "scaling": [layer.scaling["default"] for layer in layers.values()],
        "trainable": model.get_nb_trainable_parameters()[0],
        "keys": sorted(get_peft_model_state_dict(model)),
    }


if __name__ == "__main__":
    main()
