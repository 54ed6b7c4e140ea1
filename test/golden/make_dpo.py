"""DPO's losses, rewards and gradients for a PEFT adapter on tiny-llama, by trl's formulas (dpo_trainer.py, 0.24) in torch.

Run after make_lora_peft.py: OMP_NUM_THREADS=1 python make_dpo.py
"""

import json

import torch
import torch.nn.functional as F

from make_lora_peft import reload

torch.set_num_threads(1)
torch.manual_seed(11)
BETA = 0.5
model = reload("peft-all-linear")
for name, p in model.named_parameters():
    p.requires_grad_("lora_" in name)
# Two pairs: prompts of 4 and 3 tokens, answers of unequal length.
pairs = []
for prompt, chosen, rejected in [(4, 6, 3), (3, 2, 5)]:
    draw = lambda n: torch.randint(1, 257, (n,)).tolist()
    head = draw(prompt)
    pairs.append({"prompt": head, "chosen": draw(chosen), "rejected": draw(rejected)})


def logps(prompt, answer):
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[:, :-1]
    chosen = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None])[0, :, 0]
    return chosen[len(prompt) - 1 :].sum(), len(answer)


def losses(loss_type, smoothing):
    total = 0
    out = {"losses": [], "chosen": [], "rejected": []}
    for pair in pairs:
        pc, nc = logps(pair["prompt"], pair["chosen"])
        pr, nr = logps(pair["prompt"], pair["rejected"])
        with torch.no_grad(), model.disable_adapter():
            rc, _ = logps(pair["prompt"], pair["chosen"])
            rr, _ = logps(pair["prompt"], pair["rejected"])
        h = (pc - pr) - (rc - rr)
        if loss_type == "sigmoid":
            loss = -F.logsigmoid(BETA * h) * (1 - smoothing) - F.logsigmoid(-BETA * h) * smoothing
        elif loss_type == "hinge":
            loss = torch.relu(1 - BETA * h)
        elif loss_type == "ipo":
            h = (pc / nc - pr / nr) - (rc / nc - rr / nr)
            loss = (h - 1 / (2 * BETA)) ** 2
        elif loss_type == "orpo":
            mc, mr = pc / nc, pr / nr
            odds = (mc - mr) - (torch.log1p(-torch.exp(mc)) - torch.log1p(-torch.exp(mr)))
            loss = -mc - BETA * F.logsigmoid(odds)
        total = total + loss
        out["losses"].append(loss.item())
        out["chosen"].append((BETA * (pc - rc)).item())
        out["rejected"].append((BETA * (pr - rr)).item())
    model.zero_grad()
    (total / len(pairs)).backward()
    grads = {n.replace("base_model.model.", "").replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    out["gradient_norms"] = {n: g.norm().item() for n, g in grads.items()}
    key = "model.layers.0.self_attn.q_proj.lora_B.weight"
    out["gradient"] = {"name": key, "values": grads[key].flatten().tolist()}
    return out


cases = {
    "sigmoid": losses("sigmoid", 0.0),
    "sigmoid smoothed": losses("sigmoid", 0.1),
    "hinge": losses("hinge", 0.0),
    "ipo": losses("ipo", 0.0),
    "orpo": losses("orpo", 0.0),
}
json.dump({"beta": BETA, "pairs": pairs, "cases": cases}, open("dpo.json", "w"), indent=1)
print({name: case["losses"] for name, case in cases.items()})
