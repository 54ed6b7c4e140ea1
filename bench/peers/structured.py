"""torch's side of `structured`: per line `step <name>` one run of that case.

Every file of the folder structured/ beside this one has CASES: name -> function that makes the operands and returns one
run without arguments.
"""
import importlib.util
import json
import pathlib
import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(1)
cases = {}
for path in sorted((pathlib.Path(__file__).parent / "structured").glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases.update(module.CASES)

print(json.dumps({"ready": True}), flush=True)
prepared = (None, None)
for line in sys.stdin:
    name = line.split()[1]
    if prepared[0] != name:
        prepared = (name, cases[name]())
    start = time.perf_counter()
    with torch.no_grad():
        prepared[1]()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
