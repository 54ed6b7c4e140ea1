"""PEFT's EVA without its two sources of noise: the decomposition is exact (lowrank=False) and the model computes in
float64. The same batches, order and configs as make_eva.py; PEFT's own IncrementalPCA and search.
eva-exact.golden.json: ranks, and by module that has components of its own the share of the variance of each, f64.
eva-exact.golden.safetensors: `<case>.<module>`, A of every module, f32; and of rows that a formula gives, their components.

Run: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_eva_exact.py
"""

import peft.tuners.lora.eva as eva
import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from peft.utils.incremental_pca import IncrementalPCA
from safetensors.torch import save_file

from make_adapters import load_base
from make_eva import BASE, CASES, HERE, TARGETS, batch
from make_tiny_llama import versions, write_json

PREFIX = "base_model.model."


class ExactPCA(IncrementalPCA):
    def __init__(self, **given):
        super().__init__(**{**given, "lowrank": False})


class DoubleHook(eva.SVDHook):
    """Keeps what PEFT's hook rounds to float32 before it is decomposed, and remembers every module's components."""

    found = {}

    @torch.no_grad()
    def __call__(self, model, given, output):
        DoubleHook.found[self.name.removeprefix(PREFIX)] = self.svd
        states = self.prepare_layer_inputs(given)
        before = self.svd.components_.clone() if hasattr(self.svd, "components_") else None
        if states.size(0) < self.n_components:
            return
        assert states.dtype == torch.float64
        self.svd.partial_fit(states)
        if before is not None:
            self.converged = torch.cosine_similarity(self.svd.components_, before) >= self.sim_thresh


def main() -> None:
    torch.set_num_threads(1)
    eva.IncrementalPCA, eva.SVDHook = ExactPCA, DoubleHook
    batches = [batch(seed) for seed in range(3)]
    tensors, cases = {}, {}
    for name, options in CASES.items():
        DoubleHook.found = {}
        config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights="eva",
                            task_type="CAUSAL_LM", eva_config=EvaConfig(**options))
        model = get_peft_model(load_base(BASE), config).double()
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
        modules = {key.removeprefix(PREFIX).removesuffix(".lora_A.default.weight"): p.detach().float().contiguous()
                   for key, p in model.named_parameters() if ".lora_A." in key}
        tensors |= {f"{name}.{key}": p for key, p in modules.items()}
        ratios = {key: svd.explained_variance_ratio_.tolist() for key, svd in DoubleHook.found.items()}
        cases[name] = {"ranks": {key: len(p) for key, p in modules.items()}, "ratios": ratios}
        print(name, cases[name]["ranks"])
    write_json(HERE / "eva-exact.golden.json", {"versions": versions(), "cases": cases, "waves": waves()})
    save_file(tensors, HERE / "eva-exact.golden.safetensors")
    (HERE / "eva-exact.golden.safetensors").chmod(0o644)


def waves() -> dict:
    """Three batches of sin(0.7 i j + 1.3 i + 0.1 j j), i counting rows over all batches, in float64: 5 components."""
    pca = ExactPCA(n_components=5, lowrank_seed=None)
    row, sizes = 0, [20, 9, 31]
    for size in sizes:
        i, j = torch.arange(row, row + size, dtype=torch.float64)[:, None], torch.arange(12, dtype=torch.float64)
        pca.partial_fit(torch.sin(0.7 * i * j + 1.3 * i + 0.1 * j * j))
        row += size
    return {"sizes": sizes, "s": pca.singular_values_.tolist(), "vh": pca.components_.flatten().tolist(),
            "ratios": pca.explained_variance_ratio_.tolist(), "mean": pca.mean_.tolist()}


if __name__ == "__main__":
    main()
