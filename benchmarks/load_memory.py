"""What loading a model takes from this machine's memory, beside what the model itself takes.

    python benchmarks/load_memory.py

A folder of about 600 MB in bfloat16 is written in shards of 100 MB and loaded by a process of its
own, once for each way of holding it. On a processor the devices' memory is the machine's own, so
what stays (the loaded weights) is set apart from what comes and goes. "Beyond the model" is the
peak of the process's own memory less what it held before and less the weights; the pages of the
files themselves, which the system may drop at any time, are left out. A loader that first reads a
file whole would show a shard or more here, and one that reads all files the model's size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from harness import Contender, save
from workload import RESULT, report

SHARD = 100_000_000  # Bytes of one file
WAYS = {  # How it is held -> devices, stacked, type
    "list, bfloat16": (1, False, "bfloat16"),
    "stack, bfloat16": (1, True, "bfloat16"),
    "list, float32": (1, False, "float32"),
    "list, 8 devices (fsdp), bfloat16": (8, False, "bfloat16"),
    "stack, 8 devices (fsdp), bfloat16": (8, True, "bfloat16"),
}


def write_folder(folder: Path) -> dict[str, float]:
    "Write a random model in several shards, a tensor at a time."
    from tunix_rt.core.files import write_json
    from tunix_rt.models.config import preset, to_hugging_face
    from tunix_rt.models.hf_layout import wanted_tensors
    from tunix_rt.models.tokenizer import save_tokenizer, train_tokenizer
    from tunix_rt.models.weights import write_tensors

    config = preset("gemma-3-270m").resized(
        vocabulary=65_536, width=1024, layers=16, hidden=4096, query_heads=4
    )
    draw, sizes = np.random.default_rng(0), []

    def tensors():
        for name, shape in wanted_tensors(config).items():
            drawn = draw.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            sizes.append(drawn.nbytes)
            yield name, drawn

    folder.mkdir()
    write_json(folder / "config.json", to_hugging_face(config))
    save_tokenizer(folder, train_tokenizer(["What is 47 plus 86?"] * 20, vocabulary=128))
    write_tensors(folder, tensors(), SHARD)
    files = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return {
        "weights MB": sum(sizes) / 1e6,
        "shards": len(files),
        "largest shard MB": max(files) / 1e6,
        "largest tensor MB": max(sizes) / 1e6,
    }


def own_memory() -> int:
    "Read how many bytes this process holds that are not pages of a file."
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(found) * 1024


def load(folder: Path, devices: int, scan_layers: bool, kind: str) -> None:
    "Load the folder while a second thread watches the memory."
    import jax

    from tunix_rt.models.sharding import make_mesh
    from tunix_rt.models.weights import load_weights

    mesh = make_mesh(fsdp=devices) if devices > 1 else None
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    before, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, own_memory())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model, _ = load_weights(folder, jax.numpy.dtype(kind), mesh=mesh, scan_layers=scan_layers)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    import flax.nnx as nnx

    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    report(held=held, peak=peak - before, after=own_memory() - before, seconds=seconds)


def measure(folder: Path, way: str) -> dict[str, float]:
    "Load in a process of its own."
    devices = WAYS[way][0]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--folder", str(folder), "--way", way],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(RESULT))
    return json.loads(line.removeprefix(RESULT))


def main() -> None:
    "Write the folder, load it in every way, and save the table."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for the processes that it starts")
    parser.add_argument("--way", choices=WAYS, help="for the processes that it starts")
    options = parser.parse_args()
    if options.way:
        load(options.folder, *WAYS[options.way])
        return
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        facts = write_folder(Path(scratch) / "model")
        for way in WAYS:
            found = raw[way] = measure(Path(scratch) / "model", way)
            row = {
                "held as": way,
                "model MB": found["held"] / 1e6,
                "peak MB": found["peak"] / 1e6,
                "beyond the model MB": (found["peak"] - found["held"]) / 1e6,
                "of a shard": (found["peak"] - found["held"]) / 1e6 / facts["largest shard MB"],
                "seconds": found["seconds"],
            }
            rows.append(row)
            print(row, flush=True)
    explanation = (__doc__ or "").rsplit("\n\n", 1)[-1].strip()
    ours = [Contender("ours", "ours", "load_memory.py", note="`models.weights.load_model`")]
    title = f"# Memory of loading a model\n\n{explanation}"
    save("load-memory", title, {"The folder": [facts], "Loading": rows}, ours, raw, {})


if __name__ == "__main__":
    main()
