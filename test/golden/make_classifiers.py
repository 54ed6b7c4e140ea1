"""Tiny *ForSequenceClassification models with random weights, and their logits, loss and gradients in transformers.

classifier-{bert,roberta,distilbert}/   config.json, model.safetensors
Run after make_tiny_llama.py: OMP_NUM_THREADS=1 python make_classifiers.py
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
)

HERE = Path(__file__).parent
torch.set_num_threads(1)
labels = {0: "no", 1: "maybe", 2: "yes"}
common = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}, "vocab_size": 260, "pad_token_id": 0}
bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 66}
configs = {
    "bert": BertConfig(**common, **bert),
    "roberta": RobertaConfig(**{**common, "pad_token_id": 1}, **bert, type_vocab_size=1),
    "distilbert": DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=66),
}
ids = torch.tensor([[5, 9, 200, 31, 7, 77], [5, 123, 7, 0, 0, 0]])
mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
targets = torch.tensor([2, 0])


def result(model):
    model.eval()
    out = model(input_ids=ids, attention_mask=mask, labels=targets)
    out.loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
    return {"logits": out.logits.tolist(), "loss": out.loss.item(), "gradient_norms": norms}


report = {"ids": ids.tolist(), "mask": mask.tolist(), "targets": targets.tolist(), "models": {}}
for seed, (name, config) in enumerate(configs.items()):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(0.2 * torch.randn_like(p))
    folder = HERE / f"classifier-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    report["models"][name] = result(model)
torch.manual_seed(7)
model = LlamaForSequenceClassification.from_pretrained(HERE / "tiny-llama", num_labels=3, pad_token_id=0)
with torch.no_grad():
    model.score.weight.copy_(torch.randn_like(model.score.weight))
report["models"]["llama"] = {**result(model), "score": model.score.weight.tolist()}
json.dump(report, open(HERE / "classifiers.json", "w"), indent=1)
print({n: m["logits"] for n, m in report["models"].items()})
