"""Golden numbers of optimizers and schedules: python3 make_optim.py (needs torch, transformers)."""
import json, math
import torch
from transformers import optimization as o
from peft.optimizers import create_loraplus_optimizer

torch.manual_seed(0)
steps = 5
shapes = {"matrix": (3, 4), "vector": (5,)}
start = {n: torch.randn(*s) for n, s in shapes.items()}
grads = [{n: torch.randn(*s) for n, s in shapes.items()} for _ in range(steps)]
flat = lambda d: {n: t.detach().flatten().tolist() for n, t in d.items()}

def run(make):
    p = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    opt = make(list(p.values()), p)
    for g in grads:
        for n in p: p[n].grad = g[n].clone()
        opt.step()
    return flat(p)

def run_lion(lr, b1, b2, wd):
    # Algorithm 2 of arXiv 2302.06675, line by line.
    out = {}
    for n, t in start.items():
        p, m = t.clone(), torch.zeros_like(t)
        for g in grads:
            c = b1 * m + (1 - b1) * g[n]
            p = p - lr * (torch.sign(c) + wd * p)
            m = b2 * m + (1 - b2) * g[n]
        out[n] = p
    return flat(out)

T = torch.optim
cases = {
    "sgd": run(lambda p, _: T.SGD(p, lr=0.1)),
    "sgd momentum": run(lambda p, _: T.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)),
    "sgd nesterov": run(lambda p, _: T.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    "adamw": run(lambda p, _: T.AdamW(p, lr=0.1, weight_decay=0.1)),
    "lion": run_lion(0.1, 0.9, 0.99, 0.1),
    "adafactor": run(lambda p, _: T.Adafactor(p, lr=0.1, weight_decay=0.1)),
    "groups": run(lambda _, p: T.AdamW([{"params": [p["matrix"]], "lr": 0.3, "weight_decay": 0.5}, {"params": [p["vector"]]}], lr=0.1, weight_decay=0.1)),
}

total, warmup = 30, 5
dummy = lambda: T.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
def factors(make):
    opt = dummy(); s = make(opt); out = []
    for _ in range(total):
        out.append(s.get_last_lr()[0]); opt.step(); s.step()
    return out
schedules = {
    "constant": factors(lambda p: o.get_constant_schedule_with_warmup(p, warmup)),
    "linear": factors(lambda p: o.get_linear_schedule_with_warmup(p, warmup, total)),
    "cosine": factors(lambda p: o.get_cosine_schedule_with_warmup(p, warmup, total)),
    "cosine_with_restarts": factors(lambda p: o.get_cosine_with_hard_restarts_schedule_with_warmup(p, warmup, total, num_cycles=3)),
    "cosine_with_min_lr": factors(lambda p: o.get_cosine_with_min_lr_schedule_with_warmup(p, warmup, total, min_lr_rate=0.1)),
    "polynomial": factors(lambda p: o.get_polynomial_decay_schedule_with_warmup(p, warmup, total, lr_end=0.1, power=2)),
    "inverse_sqrt": factors(lambda p: o.get_inverse_sqrt_schedule(p, warmup)),
    "warmup_stable_decay": factors(lambda p: o.get_wsd_schedule(p, warmup, 10, num_training_steps=total, min_lr_ratio=0.1)),
}
json.dump({"start": flat(start), "gradients": [flat(g) for g in grads], "optimizers": cases, "schedules": {"total": total, "warmup": warmup, "factors": schedules}}, open("optim.json", "w"), indent=1)
