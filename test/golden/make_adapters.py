"""Makes LoRA's variants on tiny random models as PEFT makes and saves them, and what PEFT and torch compute with them.

adapters/<variant>/            the adapter that five AdamW steps start from (for pissa and olora: that they end with)
adapters/<variant>-converted/  the same trained adapter, written with path_initial_model_for_weight_conversion
adapters/tiny-qwen2/, adapters/tiny-gpt2/   bases with biases, and with GPT-2's Conv1D
adapters.golden.safetensors    `<variant>.logits`: before training; `<variant>.trained`: after five steps
adapters.golden.json           losses, gradient norms, parameter counts, ids and labels

Logits are those of every eighth position. Run after make_tiny_llama.py:
OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_adapters.py
"""

import math
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from make_lora_peft import ADAMW, CLIP, STEPS
from make_tiny_llama import IGNORED, load, versions, write_json

HERE = Path(__file__).parent
OUT = HERE / "adapters"
SHAPE = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"}
LINEAR = ["q_proj", "v_proj", "down_proj"]

VARIANTS = {
    "dora": ("tiny-llama", {"use_dora": True, "target_modules": LINEAR}),
    "dora-rslora": ("tiny-llama", {"use_dora": True, "use_rslora": True, "target_modules": ["o_proj", "gate_proj"]}),
    "orthogonal": ("tiny-llama", {"init_lora_weights": "orthogonal", "target_modules": LINEAR}),
    "lora-bias": ("tiny-llama", {"lora_bias": True, "target_modules": LINEAR}),
    "pissa": ("tiny-llama", {"init_lora_weights": "pissa", "target_modules": LINEAR}),
    "pissa-rslora": ("tiny-llama", {"init_lora_weights": "pissa", "use_rslora": True, "target_modules": ["up_proj"]}),
    "pissa-dora": ("tiny-llama", {"init_lora_weights": "pissa", "use_dora": True, "target_modules": ["k_proj"]}),
    "olora": ("tiny-llama", {"init_lora_weights": "olora", "target_modules": LINEAR}),
    "head": ("tiny-llama-untied", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
    "tied-head": ("tiny-llama", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
    "norms": ("tiny-llama", {"modules_to_save": ["norm"], "target_modules": ["q_proj"]}),
    "embedding-saved": ("tiny-llama", {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]}),
    "mlp-saved": ("tiny-llama", {"modules_to_save": ["1.mlp"], "target_modules": "all-linear"}),
    "embedding": ("tiny-llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding-untied": ("tiny-llama-untied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "embedding-dora": ("tiny-llama", {"use_dora": True, "target_modules": ["embed_tokens", "v_proj"]}),
    "bias-all": ("adapters/tiny-qwen2", {"bias": "all", "target_modules": ["q_proj", "o_proj"]}),
    "bias-lora-only": ("adapters/tiny-qwen2", {"bias": "lora_only", "target_modules": ["k_proj", "up_proj"]}),
    "lora-bias-on-bias": ("adapters/tiny-qwen2", {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]}),
    "dora-on-bias": ("adapters/tiny-qwen2", {"use_dora": True, "target_modules": ["q_proj", "v_proj"]}),
    "conv1d": ("adapters/tiny-gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn", "mlp.c_proj"]}),
    "conv1d-dora": ("adapters/tiny-gpt2", {"fan_in_fan_out": True, "use_dora": True, "target_modules": ["c_attn"]}),
    "conv1d-pissa": ("adapters/tiny-gpt2", {"fan_in_fan_out": True, "init_lora_weights": "pissa",
                                            "target_modules": ["c_fc"]}),
}


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_bases()
    tensors, report = {}, {"versions": versions(), "clip": CLIP, "optimizer": {**ADAMW, "betas": list(ADAMW["betas"])}}
    report["variants"] = {}
    for seed, (name, (base, options)) in enumerate(VARIANTS.items()):
        values, summary = make(name, base, options, seed)
        tensors |= values
        report["variants"][name] = {"base": base, "options": options, **summary}
        print(name, summary["losses"][0], summary["losses"][-1])
    save_file(tensors, HERE / "adapters.golden.safetensors")
    write_json(HERE / "adapters.golden.json", report)


def make(name: str, base: str, options: dict, seed: int) -> tuple[dict, dict]:
    torch.manual_seed(seed)
    config = LoraConfig(**{**SHAPE, **options})
    changes_base = str(config.init_lora_weights) in ("pissa", "olora")
    model = get_peft_model(load_base(base), config)
    count = model.get_nb_trainable_parameters()[0]
    model.peft_config["default"].base_model_name_or_path = Path(base).name
    ids, labels = batch(model.config.vocab_size)
    if changes_base:
        start = OUT / f"{name}-start"
        # So that PEFT, asked to subtract it, does not take the decomposition off again.
        model.peft_config["default"].init_lora_weights = True
        save(model, start)
        model.peft_config["default"].init_lora_weights = config.init_lora_weights
        logits, losses, norms, trained = train(model, ids, labels)
        model.peft_config["default"].init_lora_weights = options["init_lora_weights"]
        save(model, OUT / name)
        # PEFT's conversion forgets DoRA's magnitudes.
        if not config.use_dora:
            save(model, OUT / f"{name}-converted", path_initial_model_for_weight_conversion=str(start))
        shutil.rmtree(start)
    else:
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.requires_grad and "lora_A" not in key:
                    p.add_(0.1 * torch.randn_like(p))
        save(model, OUT / name)
        model = PeftModel.from_pretrained(load_base(base), OUT / name, is_trainable=True)
        logits, losses, norms, trained = train(model, ids, labels)
    return (
        {f"{name}.logits": logits, f"{name}.trained": trained},
        {"trainable": count, "ids": ids.tolist(), "labels": labels.tolist(), "losses": losses, "gradient_norms": norms},
    )


def train(model, ids, labels):
    model.train()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, ::8].contiguous()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    losses.append(output.loss.item())
    return logits, losses, norms, output.logits[:, ::8].contiguous()


def save(model, folder: Path, **options) -> None:
    model.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)


def batch(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, vocab, (2, 9), generator=torch.Generator().manual_seed(vocab))
    labels = ids.clone()
    labels[0, :3] = IGNORED
    labels[1, 7:] = IGNORED
    return ids, labels


def load_base(base: str):
    return load(HERE / base)


def make_bases() -> None:
    qwen2 = Qwen2Config(vocab_size=65, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
                        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0)
    gpt2 = GPT2Config(vocab_size=65, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    for name, model in {"tiny-qwen2": Qwen2ForCausalLM(qwen2), "tiny-gpt2": GPT2LMHeadModel(gpt2)}.items():
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for key, p in model.named_parameters():
                noise = torch.randn(p.shape, generator=generator)
                if p.dim() == 1:
                    p.copy_((0 if key.endswith("bias") else 1) + 0.1 * noise)
                else:
                    p.copy_(noise * (0.3 if "embed" in key or ".wt" in key or ".wpe" in key else 1 / math.sqrt(32)))
        model.save_pretrained(OUT / name)
        (OUT / name / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
