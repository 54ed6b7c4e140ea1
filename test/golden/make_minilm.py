"""Sentence vectors of all-MiniLM-L6-v2 as sentence-transformers makes them: mean over tokens, scaled to length 1.

Run: OMP_NUM_THREADS=1 python make_minilm.py <folder of the model>
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

HERE = Path(__file__).parent
# Of very different lengths: one of a single token, one beyond the model's 256.
TEXTS = [
    "The weaver threads the heddle before the first pick.",
    "Before weaving begins, each warp thread is drawn through a heddle.",
    "Interest rates rose by a quarter of a point on Tuesday.",
    "Yes",
    "",
    "Größe, naïveté and 東京 – in one line.",
    " ".join(f"Row {i} of the draft lifts shafts {i % 4 + 1} and {(i + 1) % 4 + 1}." for i in range(40)),
]


def main() -> None:
    torch.set_num_threads(1)
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            mean = model(**inputs).last_hidden_state[0].mean(0)
            rows.append(mean / mean.norm())
    save_file({"vectors": torch.stack(rows)}, HERE / "minilm.safetensors")
    (HERE / "minilm.json").write_text(json.dumps({"texts": TEXTS}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
