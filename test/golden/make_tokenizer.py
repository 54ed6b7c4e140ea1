"""Token ids and chat renderings by the reference implementations, for test/22-tokenizer.test.ts.

Run with transformers, tokenizers and gguf installed, giving the SmolLM2 GGUF file:
  python test/golden/make_tokenizer.py ~/.cache/heddle-test-models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
Writes tokenizer.json (expected values) and tokenizer_<pre>.gguf (small vocabularies made here) beside itself.
"""

import json
import pathlib
import random
import sys

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
WORDS = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
LLAMA3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" + WORDS
QWEN2 = LLAMA3.replace("\\p{N}{1,3}", "\\p{N}")

TEXTS = [
    "Hello, world!",
    "I have 1234 apples, isn't it? They'LL see; we'd DON'T",
    "  leading and   inner    spaces  \n\n\ttabs\t\n end \n",
    "Grüße aus Köln, naïve café, e\u0301 composed \u00e9",
    "漢字かな交じり文。日本語 2024年",
    "Привет, мир! 👩‍👩‍👧 emoji 🎉🎉",
    "½ ٣٤ Ⅷ x² 3.14159e-10 0xFF",
    "def f(x):\n    return x ** 2  # square\n\n\nprint(f(3))",
    "\ufeffbom \u0085 next line \u00a0 nbsp \u2028 sep \u200b zero",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|> <|im_end|>",
    "a" * 300 + " " + "ab" * 100,
    "",
    " ",
    "\n",
]

CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}],
    [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Grüße!"},
        {"role": "assistant", "content": "  Hallo 👋\n\nWie geht's?  "},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "\nBye"},
    ],
]


def random_texts(count):
    rng = random.Random(0)
    alphabet = " \n\tabcXYZ019'.,-_é漢🙂\u00a0½"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(count)]


def field(reader, key):
    return reader.fields[key].contents()


def smollm2(path):
    """As the SmolLM2 repository's own tokenizer.json has it: digits one by one, then GPT-2's words."""
    reader = gguf.GGUFReader(path)
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, field(reader, "tokenizer.ggml.token_type")) if kind == 3]
    tokenizer.add_special_tokens(control)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=field(reader, "tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def chat_case(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = len(tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True))
        end = len(tokenizer.apply_chat_template(messages[: index + 1], tokenize=False).rstrip())
        spans.append((start, end))
    loss = [int(any(end > s and start < e for s, e in spans)) for start, end in encoded["offset_mapping"]]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {"messages": messages, "text": text, "prompt": prompt, "ids": encoded["input_ids"], "loss": loss}


def small_gguf(pre, steps, normalizer, ignore_merges):
    """Trains a small byte-level BPE and writes it as GGUF metadata; returns the expected ids."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    special = ["<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:9] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(HERE / f"tokenizer_{pre}.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    return {"pre": pre, "cases": [{"text": text, "ids": encode(text)} for text in TEXTS + random_texts(20)]}


def split(regex):
    pattern = tokenizers.Regex(regex)
    return [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def main():
    tokenizer = smollm2(sys.argv[1])
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    cases = [
        {"text": text, "ids": encode(text), "decoded": decode(encode(text))} for text in TEXTS + random_texts(60)
    ]
    gpt2 = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    golden = {
        "smollm2": {"cases": cases, "chats": [chat_case(tokenizer, messages) for messages in CHATS]},
        "small": [
            small_gguf("gpt-2", gpt2, None, False),
            small_gguf("llama-bpe", split(LLAMA3), None, True),
            small_gguf("qwen2", split(QWEN2), normalizers.NFC(), False),
        ],
    }
    (HERE / "tokenizer.json").write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
