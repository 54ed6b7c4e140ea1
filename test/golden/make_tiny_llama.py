"""Makes three random tiny Llamas as Hugging Face folders, with their logits and gradients as transformers computes them.

tiny-llama         tied embeddings, config.json as transformers 5 writes it (rope_parameters)
tiny-llama-untied  own lm_head, sharded safetensors, config.json as transformers 4 wrote it (rope_theta, rope_scaling)
tiny-llama-llama3  one layer, rope_scaling of type llama3 that bends the frequencies within 17 positions

Run: OMP_NUM_THREADS=1 python make_tiny_llama.py
"""

import json
import math
import shutil
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
IGNORED = -100


def main() -> None:
    torch.set_num_threads(1)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    # The pre-training window is so short that all three bands (kept, blended, divided) occur among the 8 frequencies.
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    make("tiny-llama", config(tie_word_embeddings=True, rope_parameters=rope), seed=1, gradients=True)
    make("tiny-llama-untied", config(tie_word_embeddings=False, rope_parameters=rope), seed=2, gradients=True,
         shard_size="150KB", transformers4=True)
    make("tiny-llama-llama3", config(tie_word_embeddings=True, rope_parameters=llama3, num_hidden_layers=1,
                                     vocab_size=65), seed=3, transformers4=True)


def config(**changes) -> LlamaConfig:
    return LlamaConfig(**{
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 257,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": None,
        "eos_token_id": 0,
        **changes,
    })


def make(name: str, cfg: LlamaConfig, seed: int, gradients: bool = False, shard_size: str = "1MB",
         transformers4: bool = False) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = randomised(cfg, seed)
    model.save_pretrained(folder, max_shard_size=shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if transformers4:
        rewrite_config_as_transformers4(folder / "config.json")

    # What is on disk, not what is in memory, is what the golden values belong to.
    model = load(folder)
    ids, labels = batch(cfg.vocab_size, seed)
    output = model(input_ids=ids, labels=labels)
    output.loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    nll = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    ).view(ids.shape[0], -1)

    weights = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    exact = logits_in_f64(cfg, weights, ids)
    exact_loss = torch.nn.functional.cross_entropy(exact[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    exact_loss.backward()

    save_file({
        "ids": ids.int(),
        "labels": labels.int(),
        "targets": labels[:, 1:].int().contiguous(),
        "logits": output.logits.detach().contiguous(),
        "nll": nll.detach(),
        "loss": output.loss.detach().view(1),
    }, HERE / f"{name}.golden.safetensors")
    if gradients:
        save_file(grads, HERE / f"{name}.gradients.safetensors")
    report = {
        "versions": versions(),
        "loss": output.loss.item(),
        "logits_std": output.logits.std().item(),
        "rope_inverse_frequencies": model.model.rotary_emb.inv_freq.tolist(),
        "f32_against_f64": {
            "logits": relative(output.logits, exact),
            "loss": abs(output.loss.item() - exact_loss.item()),
            "gradients": max(relative(g, weights[n].grad) for n, g in grads.items()),
        },
    }
    write_json(HERE / f"{name}.golden.json", report)
    print(name, json.dumps(report["f32_against_f64"]), "logits std", report["logits_std"])


def randomised(cfg: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Weights that keep the signal at unit size, so that neither the logits nor the attention are flat."""
    model = LlamaForCausalLM(cfg)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise / math.sqrt(p.shape[1]))
    return model.eval()


def load(folder: Path) -> LlamaForCausalLM:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def batch(vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [2, 17] and unshifted labels: a masked prompt in row 0, a masked tail and a hole in row 1."""
    ids = torch.randint(1, vocab, (2, 17), generator=torch.Generator().manual_seed(100 + seed))
    labels = ids.clone()
    labels[0, :6] = IGNORED
    labels[1, 8] = IGNORED
    labels[1, 13:] = IGNORED
    return ids, labels


def rewrite_config_as_transformers4(path: Path) -> None:
    """The spelling of nearly every config.json on the Hub."""
    stored = json.loads(path.read_text())
    rope = stored.pop("rope_parameters")
    stored["rope_theta"] = rope.pop("rope_theta")
    stored["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    stored["torch_dtype"] = stored.pop("dtype")
    stored["transformers_version"] = "4.45.0"
    write_json(path, stored)


def logits_in_f64(cfg: LlamaConfig, w: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Llama's forward pass once more, written from its definition in float64: what f32 rounding is measured against."""
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    size = cfg.hidden_size // heads
    batch_size, length = ids.shape
    angles = torch.outer(torch.arange(length, dtype=torch.float64), inverse_frequencies(cfg.rope_parameters, size))
    cos, sin = angles.cos(), angles.sin()

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + cfg.rms_norm_eps).rsqrt() * weight

    def rotate(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def split(x, count):
        return x.view(batch_size, length, count, size).transpose(1, 2)

    x = w["model.embed_tokens.weight"][ids]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(cfg.num_hidden_layers):
        site = f"model.layers.{layer}."
        h = norm(x, w[site + "input_layernorm.weight"])
        q = rotate(split(h @ w[site + "self_attn.q_proj.weight"].T, heads))
        k = rotate(split(h @ w[site + "self_attn.k_proj.weight"].T, kv_heads)).repeat_interleave(heads // kv_heads, 1)
        v = split(h @ w[site + "self_attn.v_proj.weight"].T, kv_heads).repeat_interleave(heads // kv_heads, 1)
        scores = (q @ k.transpose(2, 3) / math.sqrt(size)).masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch_size, length, -1)
        x = x + mixed @ w[site + "self_attn.o_proj.weight"].T
        h = norm(x, w[site + "post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ w[site + "mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[site + "mlp.up_proj.weight"].T)) @ w[site + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


def inverse_frequencies(rope: dict, size: int) -> torch.Tensor:
    frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if rope["rope_type"] == "default":
        return frequencies
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value.double() - reference).abs().max() / reference.abs().max()).item()


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "safetensors": safetensors.__version__}


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
