"""Memory of a merge, measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZE, TENSORS = 24, 28  # MiB of a model; in SD 1.5 the largest tensor is 1/28 of the model, too
SCRIPT = """
import resource, sys
from pathlib import Path
import psutil, torch
from safetensors.torch import load_file, save_file
from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import merge
from diffusemble.merging.methods import weighted_average

folder = Path(sys.argv[1])
*experts, base = (str(folder / f"{seed}.safetensors") for seed in range(7))

def grown(work):
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # each work has its own peak, not that of one before it
    before = psutil.Process().memory_info().rss
    work()
    return round((peak() - before) / 2**20)

def peak():
    status = Path("/proc/self/status")  # getrusage would count the parent as well, as it was at the fork
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def merged(count, method, **more):
    out = str(folder / f"{method}{count}.safetensors")
    print(grown(lambda: merge(MergeConfig(experts=experts[:count], method=method, out=out, **more))), flush=True)

small = [str(folder / f"small{seed}.safetensors") for seed in range(2)]
for file in small:
    save_file({"0": torch.zeros(1)}, file)
merge(MergeConfig(experts=small, out=str(folder / "small.safetensors")))  # what is imported on first use
merged(2, "weighted")
merged(6, "weighted")
merged(6, "ties", base=base)
merged(2, "cosine")
print(grown(lambda: weighted_average([load_file(file) for file in experts[:2]])), flush=True)
"""


def test_memory_stays_below_one_and_a_half_models_for_any_number(tmp_path: Path) -> None:
    for seed in range(7):  # not in the measured process, whose peak this would be
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"{i}": torch.randn(SIZE * 2**18 // TENSORS, generator=generator) for i in range(TENSORS)}
        save_file(tensors, tmp_path / f"{seed}.safetensors")
    # Tensors of real models are larger than any threshold of the allocator, so what is freed goes back at once. These
    # small ones would stay in its heap, and the peak would be that of the heap's gaps.
    surroundings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr
    *streamed, at_once = map(int, done.stdout.split())
    assert len(streamed) == 4
    assert max(streamed) < 1.5 * SIZE, streamed
    assert at_once > 1.5 * SIZE  # what the bound is there to notice
