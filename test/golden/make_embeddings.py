"""Contrastive and cosine losses with their gradients on classifier-bert's encoder, by sentence-transformers' formulas.

Run after make_classifiers.py: OMP_NUM_THREADS=1 python make_embeddings.py
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

HERE = Path(__file__).parent
torch.set_num_threads(1)
torch.manual_seed(3)
model = AutoModelForSequenceClassification.from_pretrained(HERE / "classifier-bert").bert.eval()
texts = [[torch.randint(2, 260, (n,)).tolist() for n in lengths] for lengths in [(4, 7, 3), (5, 2, 6), (3, 3, 8)]]


def vectors(rows):
    out = []
    for ids in rows:
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        out.append(F.normalize(hidden.mean(0), dim=0))
    return torch.stack(out)


def report(loss):
    model.zero_grad()
    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
    return {"loss": loss.item(), "gradient_norms": norms}


def ranking(members, temperature):
    anchors, candidates = vectors(texts[0]), torch.cat([vectors(t) for t in texts[1:members]])
    return F.cross_entropy(anchors @ candidates.T / temperature, torch.arange(3))


scores = torch.tensor([0.9, 0.1, -0.3])
cosines = lambda: (vectors(texts[0]) * vectors(texts[1])).sum(-1)
json.dump(
    {
        "texts": texts,
        "scores": scores.tolist(),
        "pairs": report(ranking(2, 0.05)),
        "triples": report(ranking(3, 0.2)),
        "cosine": {**report(F.mse_loss(cosines(), scores)), "cosines": cosines().tolist()},
    },
    open(HERE / "embeddings.json", "w"),
    indent=1,
)
