"""A scratch folder dressed as a Kaggle machine, where a notebook runs as it would there.

`/kaggle/input` is read only, `/kaggle/working` is all that a session keeps, Kaggle's variables are
set, nothing outside can be reached, and Python has what Kaggle's image for TPUs has and no more:
what the package needs beyond that comes from an attached bundle or not at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from tunix_rt.kaggle.wheels import Wheel, closure

COMPILED = {  # What one process has compiled, the next takes from the disk, however small it is
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # With a limit JAX reads a date beside each program, and keeps no more once one is missing:
    # that of a program kept by a process without a limit, or by one that was killed meanwhile.
    "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
}

# What `tpu/requirements.in` of Kaggle/docker-python names and a session touches; with the kernel
# and pip, which come along with others there, and sympy, which torch brings. Left out are torch
# itself, jupyterlab, keras and the like: less makes a harder test of the bundle, and a quicker one.
REQUIREMENTS = (
    "jax", "jaxlib", "flax", "optax", "papermill", "kagglehub", "ipykernel", "ipywidgets",
    "matplotlib", "pandas", "transformers", "sympy", "pip",
)  # fmt: skip


def installed() -> dict[str, metadata.Distribution]:
    "Find what is installed here, by name."
    return {str(canonicalize_name(d.name)): d for d in metadata.distributions() if d.name}


def files_of(distribution: metadata.Distribution) -> list[str]:
    "List the files of a distribution, below where it is installed."
    lines = (distribution.read_text("RECORD") or "").splitlines()
    names = [line.rsplit(",", 2)[0].strip('"') for line in lines]
    return [name for name in names if name[:3] != "../" and not name.endswith(".pth")]


def make_image(folder: Path, names: Iterable[str] = REQUIREMENTS) -> Path:
    """Link what is installed here and Kaggle's image has into a folder; freeze it beside.

    A folder that belongs to the image alone is one link. One that others share is linked file by
    file, so that nothing of theirs comes along. Python does not write into what is linked, and
    pip does not remove it: to both it lies outside the environment.
    """
    here, python = installed(), f"{sys.version_info.major}.{sys.version_info.minor}"
    wheels = [Wheel(name, d.version, tuple(d.requires or ())) for name, d in here.items()]
    held = closure(names, wheels, python) & set(here)
    files = {name: files_of(distribution) for name, distribution in here.items()}
    others = {file.split("/")[0] for name in set(here) - held for file in files[name]}
    folder.mkdir(parents=True)
    links: dict[str, Path] = {}
    for name in held:
        tops = ((file.split("/")[0], file) for file in files[name])
        linked = {file if top in others else top for top, file in tops if top != "__pycache__"}
        links |= {link: Path(here[name].locate_file(link)) for link in linked}
    for link, source in links.items():
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(source)
    folder.with_suffix(".txt").write_text(
        "".join(f"{name}=={here[name].version}\n" for name in sorted(held))
    )
    return folder


def offline() -> list[str]:
    "Put a command into a network of its own, where there is nobody but itself."
    up = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for flags in (["-n"], ["-rn"]):
        command = ["unshare", *flags, *up, "true"]
        try:
            if subprocess.run(command, capture_output=True).returncode == 0:
                return ["unshare", *flags, *up]
        except FileNotFoundError:
            break
    return []  # the variables below still lead nowhere


@dataclass
class Machine:
    "A disk, and a Python that has what Kaggle's image has."

    disk: Path
    image: Path  # Folder of links, from `make_image`

    @property
    def working(self) -> Path:
        return self.disk / "kaggle/working"

    @property
    def python(self) -> Path:
        return self.disk / "opt/bin/python"

    @property
    def runs(self) -> Path:
        return self.working / "outputs/runs"

    def attach(self, source: Path, name: str) -> None:
        "Put a copy of a folder under the input, read only."
        target = self.disk / "kaggle/input" / name
        shutil.copytree(source, target)
        for path in sorted(target.rglob("*"), reverse=True):
            path.chmod(0o555 if path.is_dir() else 0o444)

    def new_session(self) -> None:
        "Forget everything but what is attached, as Kaggle does between sessions."
        shutil.rmtree(self.working)
        shutil.rmtree(self.disk / "opt")
        self.working.mkdir()
        make_python(self.disk / "opt", self.image)

    def start(self, notebook: Path) -> subprocess.Popen[bytes]:
        "Run a notebook as Kaggle runs a saved version."
        out = self.working / "__notebook__.ipynb"
        words = ["-m", "papermill", str(notebook), str(out), "-k", "python3", "--no-progress-bar"]
        return subprocess.Popen(
            [*offline(), str(self.python), *words, "--cwd", str(self.working), "--log-output"],
            cwd=self.working,
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def variables(self) -> dict[str, str]:
        "Everything that a process on this machine finds in its environment."
        nowhere = "http://127.0.0.1:9"
        return {
            "PATH": f"{self.python.parent}:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.disk / "root"),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            **COMPILED,
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(self.disk / "root/compiled")
            ),
            "PIP_CONFIG_FILE": os.devnull,  # what pip is told here, nobody tells it on Kaggle
            "PIP_NO_COMPILE": "0",  # pip takes a no for a yes here; what is imported is compiled
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "TUNIX_RT_KAGGLE_ROOT": str(self.disk),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": "https://www.kaggle.com",
            "KAGGLE_DATA_PROXY_URL": nowhere,
            "KAGGLE_CONTAINER_NAME": "kaggle_dressed",
            "HTTPS_PROXY": nowhere,
            "HTTP_PROXY": nowhere,
        }


def make_python(folder: Path, image: Path) -> None:
    "Make a Python that has what is in an image, and room to install more beside it."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A plain line is a folder to import from; .pth files in it, and so the checkout, are not read.
    (site / "image.pth").write_text(f"{image}\n")


def dress(disk: Path, image: Path) -> Machine:
    "Dress a folder as a Kaggle machine."
    for folder in ("kaggle/input", "kaggle/working", "root", "dev"):
        (disk / folder).mkdir(parents=True)
    make_python(disk / "opt", image)
    return Machine(disk, image)


def is_gone(process: subprocess.Popen[bytes], run: Path) -> bool:
    "Whether a process that was killed has left its run folder."
    from tunix_rt.runs.lock import held

    return process.poll() is not None and not held(run)
