"""Makes adapters of PEFT's other methods on tiny random models as PEFT makes and saves them, and what PEFT computes.

peft-methods/<variant>/            the adapter that five AdamW steps start from
peft-methods.golden.safetensors    `<variant>.logits`: before training; `<variant>.trained`: after five steps
peft-methods.golden.json           losses, gradient norms, parameter counts, ids and labels

Logits are those of every eighth position. Run after make_adapters.py:
OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_peft_methods.py
"""

import shutil
from pathlib import Path

import torch
from peft import IA3Config, PeftModel, RandLoraConfig, VeraConfig, get_peft_model
from safetensors.torch import save_file

from make_adapters import batch, load_base, save, train
from make_lora_peft import ADAMW, CLIP
from make_tiny_llama import versions, write_json

HERE = Path(__file__).parent
CONFIGS = {"ia3": IA3Config, "vera": VeraConfig, "randlora": RandLoraConfig}
LLAMA, QWEN, GPT2 = "tiny-llama-untied", "adapters/tiny-qwen2", "adapters/tiny-gpt2"
FAN = {"fan_in_fan_out": True}

VARIANTS = {
    "ia3": ("ia3", LLAMA, {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "ia3-pattern": ("ia3", LLAMA, {"target_modules": "all-linear", "feedforward_modules": r".*\.0\.mlp\.up_proj"}),
    "ia3-bias": ("ia3", QWEN, {"target_modules": ["q_proj", "k_proj", "down_proj"],
                               "feedforward_modules": ["k_proj"]}),
    "ia3-conv1d": ("ia3", GPT2, {"target_modules": ["c_attn", "mlp.c_proj", "attn.c_proj"],
                                 "feedforward_modules": ["mlp.c_proj"], **FAN}),
    "vera": ("vera", LLAMA, {"r": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "vera-key": ("vera", LLAMA, {"r": 8, "target_modules": ["k_proj", "up_proj"], "projection_prng_key": 1234567,
                                 "save_projection": False, "d_initial": 0.3}),
    "vera-bias": ("vera", QWEN, {"r": 8, "target_modules": ["q_proj", "o_proj"], "bias": "vera_only"}),
    "vera-conv1d": ("vera", GPT2, {"r": 8, "target_modules": ["c_attn", "mlp.c_proj"], "save_projection": False, **FAN}),
    "randlora": ("randlora", LLAMA, {"r": 24, "randlora_alpha": 24, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "randlora-key": ("randlora", LLAMA, {"r": 10, "randlora_alpha": 5, "target_modules": ["k_proj", "up_proj"],
                                         "projection_prng_key": 1234567, "save_projection": False}),
    "randlora-sparse": ("randlora", QWEN, {"r": 8, "randlora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
                                           "sparse": True, "save_projection": False, "bias": "randlora_only"}),
    "randlora-very-sparse": ("randlora", GPT2, {"r": 8, "randlora_alpha": 8, "target_modules": ["c_attn", "mlp.c_proj"],
                                                "very_sparse": True, "save_projection": False, **FAN}),
}


def main() -> None:
    make_all("peft-methods", CONFIGS, VARIANTS)


def make_all(made: str, configs: dict, all_variants: dict) -> None:
    """Writes <made>/, <made>.golden.safetensors and <made>.golden.json."""
    torch.set_num_threads(1)
    shutil.rmtree(HERE / made, ignore_errors=True)
    tensors, variants = {}, {}
    for seed, (name, (method, base, options)) in enumerate(all_variants.items()):
        torch.manual_seed(seed)
        values, summary = make(HERE / made / name, configs[method](task_type="CAUSAL_LM", **options), base)
        tensors |= values
        variants[name] = {"method": method, "base": base, "options": options, **summary}
        print(name, summary["losses"][0], summary["losses"][-1])
    save_file(tensors, HERE / f"{made}.golden.safetensors")
    optimizer = {**ADAMW, "betas": list(ADAMW["betas"])}
    write_json(HERE / f"{made}.golden.json",
               {"versions": versions(), "clip": CLIP, "optimizer": optimizer, "variants": variants})


def make(folder: Path, config, base: str) -> tuple[dict, dict]:
    name = folder.name
    model = get_peft_model(load_base(base), config)
    count = model.get_nb_trainable_parameters()[0]
    model.peft_config["default"].base_model_name_or_path = Path(base).name
    ids, labels = batch(model.config.vocab_size)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    save(model, folder)
    model = PeftModel.from_pretrained(load_base(base), folder, is_trainable=True)
    logits, losses, norms, trained = train(model, ids, labels)
    return (
        {f"{name}.logits": logits, f"{name}.trained": trained},
        {"trainable": count, "ids": ids.tolist(), "labels": labels.tolist(), "losses": losses, "gradient_norms": norms},
    )


if __name__ == "__main__":
    main()
