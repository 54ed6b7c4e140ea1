"""Makes a random tiny checkpoint of every architecture, with what transformers computes from it.

models/<name>/config.json, model.safetensors   as save_pretrained writes them; weights are exact in bf16
models/<name>/adapter                          a LoRA adapter of PEFT's on all linear modules, but for images
models/<name>/golden.safetensors               decoders: ids, logits; encoders: ids, mask, hidden; images: pixels, logits
                                               those of LONG also: short, generated, generated_logits (see run_long)
models/<name>/gradients.json                   for each parameter, |g| and sum(g * cos(0.7 i)) of the mean loss (decoders)
                                               or of sum(y * cos(0.7 i)) with y the hidden states of real tokens
                                               (encoders) or the logits (images)

The goldens of decoders and encoders also hold `adapted`: the output with the adapter.

Run: OMP_NUM_THREADS=1 python make_models.py [name ...]
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

HERE = Path(__file__).parent / "models"
VOCAB = 67
LENGTH = 24

LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}
BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 40,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

DECODERS = {
    "llama-biased": (tf.LlamaConfig, {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    "llama-yarn": (tf.LlamaConfig, {**LLAMA, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "mistral": (tf.MistralConfig, {**LLAMA, "sliding_window": 5}),
    "qwen2": (tf.Qwen2Config, {**LLAMA, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
                               "tie_word_embeddings": True}),
    "qwen3": (tf.Qwen3Config, {**LLAMA, "head_dim": 12}),
    "gemma": (tf.GemmaConfig, {**LLAMA, "head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (tf.Gemma2Config, {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5,
                                 "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (tf.Gemma3TextConfig, {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 5,
                                     "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": (tf.PhiConfig, {**LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "phi-qk-norm": (tf.PhiConfig, {**LLAMA, "qk_layernorm": True, "partial_rotary_factor": 0.25}),
    "phi3": (tf.Phi3Config, {**LLAMA, "sliding_window": 7}),
    "gpt2": (tf.GPT2Config, {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
                             "bos_token_id": 0, "eos_token_id": 0}),
    "opt": (tf.OPTConfig, {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "opt-350m": (tf.OPTConfig, {"vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                                "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
                                "do_layer_norm_before": False}),
    "gpt-neox": (tf.GPTNeoXConfig, {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
                                    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
                                    "rotary_pct": 0.25}),
    "gpt-neox-sequential": (tf.GPTNeoXConfig, {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
                                               "num_hidden_layers": 2, "num_attention_heads": 4,
                                               "max_position_embeddings": 64, "rotary_pct": 1.0,
                                               "use_parallel_residual": False}),
}
ENCODERS = {
    "bert": (tf.BertConfig, BERT),
    "roberta": (tf.RobertaConfig, {**BERT, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": (tf.XLMRobertaConfig, {**BERT, "type_vocab_size": 1, "pad_token_id": 1, "hidden_act": "gelu_new"}),
    "distilbert": (tf.DistilBertConfig, {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
                                         "max_position_embeddings": 40}),
}

# Rotations that depend on the length of the text: 24 tokens are beyond the limit of 16, the first 12 are not.
LONG = {
    "llama-dynamic": (tf.LlamaConfig, {**LLAMA, "max_position_embeddings": 16, "rope_parameters":
                                       {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    "phi3-longrope": (tf.Phi3Config, {**LLAMA, "original_max_position_embeddings": 16, "rope_parameters":
                                      {"rope_type": "longrope", "rope_theta": 10000.0,
                                       "short_factor": [1.0, 1.05, 1.2, 1.5], "long_factor": [1.0, 2.0, 3.5, 6.0]}}),
}

IMAGES = {
    "vit": (tf.ViTConfig, {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                           "image_size": [16, 12], "patch_size": 4, "num_labels": 5}),
}


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    for seed, (name, (config, fields)) in enumerate([*DECODERS.items(), *ENCODERS.items(), *IMAGES.items(), *LONG.items()]):
        if not chosen or name in chosen:
            make(name, config(**fields), seed)


def make(name: str, config, seed: int) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    auto, run = (
        (tf.AutoModelForCausalLM, run_decoder) if name in DECODERS or name in LONG
        else (tf.AutoModel, run_encoder) if name in ENCODERS
        else (tf.AutoModelForImageClassification, run_images)
    )
    model = auto.from_config(config, attn_implementation="eager")
    randomise(model, seed)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model, info = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                       output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.eval()
    golden, objective = run(model, seed)
    objective.backward()
    gradients = {stored_name(model, n): probe(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    (folder / "gradients.json").write_text(json.dumps(gradients, indent=1) + "\n")
    if name not in IMAGES:
        golden["adapted"] = adapt(model, golden, folder / "adapter", seed)
    if name in LONG:
        # A model of its own: transformers' dynamic rotation remembers the longest text that it has seen.
        fresh = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        golden |= run_long(fresh.eval(), golden["ids"].long())
    save_file(golden, folder / "golden.safetensors")
    size = sum(path.stat().st_size for path in folder.rglob("*.*"))
    print(name, type(model).__name__, f"{size / 1000:.0f} kB", "std", [round(v.std().item(), 3) for v in golden.values() if v.is_floating_point()])


def run_decoder(model, seed: int):
    # Id 1 is OPT's padding, whose embedding torch gives no gradient.
    ids = torch.randint(2, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1000 + seed))
    logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return {"ids": ids.int(), "logits": logits.detach().contiguous()}, loss


def run_long(model, ids):
    """Logits of the first 12 tokens, and 20 greedy tokens after 10 with their logits: across the limit, with a cache."""
    short = model(input_ids=ids[:, :12]).logits.detach().contiguous()
    how = tf.GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=1)
    made = model.generate(ids[:1, :10], generation_config=how, output_logits=True, return_dict_in_generate=True)
    return {"short": short, "generated": made.sequences[0, 10:].int().contiguous(),
            "generated_logits": torch.cat(made.logits).contiguous()}


def run_encoder(model, seed: int):
    """Row 0 is full; row 1 ends after 15 tokens."""
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1000 + seed))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    ids[1, 15:] = model.config.pad_token_id or 0
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = torch.cos(0.7 * torch.arange(hidden.numel())).view(hidden.shape)
    objective = (hidden * weight * mask[..., None]).sum()
    return {"ids": ids.int(), "mask": mask.int(), "hidden": hidden.detach().contiguous()}, objective


def run_images(model, seed: int):
    pixels = torch.randn((2, 3, 16, 12), generator=torch.Generator().manual_seed(1000 + seed))
    logits = model(pixel_values=pixels).logits
    weight = torch.cos(0.7 * torch.arange(logits.numel())).view(logits.shape)
    return {"pixels": pixels, "logits": logits.detach().contiguous()}, (logits * weight).sum()


def adapt(model, golden, folder: Path, seed: int) -> torch.Tensor:
    kind = "CAUSAL_LM" if "logits" in golden else "FEATURE_EXTRACTION"
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type=kind,
                        fan_in_fan_out=model.config.model_type == "gpt2")
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(2000 + seed)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_((0.3 * torch.randn(p.shape, generator=generator)).bfloat16())
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    inputs = {"input_ids": golden["ids"].long()}
    if "mask" in golden:
        inputs["attention_mask"] = golden["mask"].long()
    with torch.no_grad():
        return adapted(**inputs)[0].contiguous()


def randomise(model, seed: int) -> None:
    """Weights that keep the signal at unit size, so that neither the outputs nor the attention are flat."""
    generator = torch.Generator().manual_seed(seed)
    gemma = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                noise = torch.randn(p.shape, generator=generator)
                if name == "bias":
                    p.copy_(0.1 * noise)
                elif p.dim() == 1:
                    p.copy_(0.1 * noise + (0 if gemma else 1))
                elif isinstance(module, torch.nn.Embedding):
                    p.copy_(0.3 * noise)
                else:
                    conv1d = type(module).__name__ == "Conv1D"
                    p.copy_(noise / math.sqrt(p.shape[0] if conv1d else p[0].numel()))
        model.tie_weights()


def stored_name(model, name: str) -> str:
    """Transformers 5 renamed some modules, but not in files."""
    renamed = {
        "gpt_neox": {"lm_head": "embed_out"},
        "vit": {"vit.layers": "vit.encoder.layer", "attention.q_proj": "attention.attention.query",
                "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
                "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense"},
    }
    for now, stored in renamed.get(model.config.model_type, {}).items():
        name = name.replace(now, stored)
    return name


def probe(g: torch.Tensor) -> list[float]:
    flat = g.double().flatten()
    return [flat.norm().item(), (flat * torch.cos(0.7 * torch.arange(flat.numel(), dtype=torch.double))).sum().item()]


if __name__ == "__main__":
    main()
