"""Run every library notebook as nbdev_test does, each in a process of its own.

A process shared between notebooks would pass settings and module state on, and a process begun from
nothing spends longer on importing jax than most notebooks take. So one server process imports what
is slow, starts nothing with it, and forks for each notebook.
"""

import multiprocessing
import sys
import time
from pathlib import Path

SLOW = ["nbdev.test", "jax", "flax.nnx", "optax", "orbax.checkpoint", "transformers", "pandas"]
SLOW += ["matplotlib.pyplot", "sqlalchemy.orm", "fastapi", "papermill", "optuna", "math_verify"]
# What compiles programs or starts runs takes long. The gate runs it once, in pytest, which also
# compares what it says; `all` runs it here as well.
LONG = {"guides", "models", "training", "evaluation", "inference", "rewards", "rl"}
LONG |= {"10_api", "12_post_training", "14_preferences", "16_lm_eval", "runs/60_execute"}
LONG |= {"cli/15_doctor", "cli/42_ask", "cli/50_tune", "kaggle/60_tunix_export"}
LONG |= {"tuning/50_controller", "batch"}


def run(path: Path) -> tuple[Path, bool, float]:
    "Run one notebook; what goes wrong in it is printed."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    config, start = get_config(), time.monotonic()
    passed, _ = test_nb(path, skip_flags=config.tst_flags.split(), basepath=config.config_path)
    return path, passed, time.monotonic() - start


def main(*words: str) -> int:
    "Run them, two at a time."
    nbs = Path("nbs").resolve()
    notebooks = [
        path
        for path in sorted(nbs.rglob("*.ipynb"))
        if "pipelines" not in path.parts and not path.name.startswith(".")
        if "all" in words
        or not LONG & {path.parent.name, path.relative_to(nbs).with_suffix("").as_posix()}
    ]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(SLOW)
    with server.Pool(2, maxtasksperchild=1) as pool:
        results = list(pool.imap_unordered(run, notebooks, chunksize=1))
    for path, passed, seconds in sorted(results, key=lambda result: -result[2])[:10]:
        print(f"{seconds:6.1f} s  {path.name}{'' if passed else '  FAILED'}")
    failed = [str(path) for path, passed, _ in results if not passed]
    print(f"{len(results) - len(failed)} notebooks passed, {len(failed)} failed", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
