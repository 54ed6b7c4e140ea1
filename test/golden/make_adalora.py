"""Trains AdaLoRA on a tiny random model as PEFT does: AdamW, then update_and_allocate, at every step.

adalora/start/     the adapter that training starts from
adalora/trained/   what PEFT saves after the last step: rows that lost their rank are left out
adalora.golden.safetensors   `start`, `trained`: logits of every eighth position; `reloaded`: of the folder
adalora.golden.json          for every step the task's loss, the orthogonality term, b(t), and which entries of E are not 0

Run after make_tiny_llama.py: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_adalora.py
"""

import shutil
from pathlib import Path

import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from make_adapters import batch, load_base, save
from make_lora_peft import ADAMW
from make_tiny_llama import versions, write_json

HERE = Path(__file__).parent
OUT = HERE / "adalora"
BASE = "tiny-llama-untied"
OPTIONS = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "total_step": 12, "lora_alpha": 6,
           "orth_reg_weight": 0.3, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(5)
    model = get_peft_model(load_base(BASE), AdaLoraConfig(task_type="CAUSAL_LM", **OPTIONS))
    count = model.get_nb_trainable_parameters()[0]
    model.peft_config["default"].base_model_name_or_path = BASE
    ids, labels = batch(model.config.vocab_size)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                p.add_((0.5 if "lora_E" in key else 0.1) * torch.randn_like(p))
    save(model, OUT / "start")
    model = PeftModel.from_pretrained(load_base(BASE), OUT / "start", is_trainable=True)
    start = logits(model, ids)
    steps = [step(model, optimizer, ids, labels, t) for optimizer in [make_optimizer(model)]
             for t in range(1, OPTIONS["total_step"] + 1)]
    trained = logits(model, ids)
    save(model, OUT / "trained")
    reloaded = logits(PeftModel.from_pretrained(load_base(BASE), OUT / "trained"), ids)
    save_file({"start": start, "trained": trained, "reloaded": reloaded}, HERE / "adalora.golden.safetensors")
    write_json(HERE / "adalora.golden.json",
               {"versions": versions(), "base": BASE, "options": OPTIONS, "trainable": count, "ids": ids.tolist(),
                "labels": labels.tolist(), "optimizer": {**ADAMW, "betas": list(ADAMW["betas"])}, "steps": steps})
    for each in steps:
        print(each["loss"], each["budget"], sum(map(sum, each["mask"].values())))


def make_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **ADAMW)


def step(model, optimizer, ids, labels, t: int) -> dict:
    model.train()
    optimizer.zero_grad()
    with torch.no_grad():
        task = model.base_model.model(input_ids=ids, labels=labels).loss.item()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(t)
    budget = model.base_model.rankallocator.budget_schedule(t)[0]
    mask = {key.replace(".default", "").replace("base_model.model.", ""): (p != 0).view(-1).tolist()
            for key, p in model.named_parameters() if "lora_E" in key}
    return {"loss": task, "penalty": loss.item() - task, "budget": budget, "mask": mask}


def logits(model, ids) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model.base_model.model(input_ids=ids).logits[:, ::8].contiguous()


if __name__ == "__main__":
    main()
