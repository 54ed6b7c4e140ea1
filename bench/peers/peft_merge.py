"""PEFT's side of `merge`: per line `step`, loads a folder and an adapter and times merge_and_unload."""
import json
import resource
import sys
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

folder, adapter, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    if line.strip() == "report":
        scale = 1 if sys.platform == "darwin" else 1024
        print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}), flush=True)
        continue
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter)
    start = time.perf_counter()
    model.merge_and_unload()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    del model
