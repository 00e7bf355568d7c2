"""A scratch folder dressed as a Kaggle machine, where a notebook runs as it would there.

`/kaggle/input` is read only, `/kaggle/working` is all that a session keeps, Kaggle's variables are
set, nothing outside can be reached, and the package comes from an attached wheel or not at all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tunix_rt.kaggle.bundle import SOURCES, pip

CHECKOUT = Path(__file__).resolve().parent.parent
COMPILED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}  # A second session compiles less


def newer_wheel(into: Path) -> Path:
    "Build the wheel under a later version than the checkout's, so that it is really installed."
    copy = into / "sources"
    for name in SOURCES:
        source, target = CHECKOUT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    ini = copy / "settings.ini"
    lines = ini.read_text().splitlines()
    ini.write_text("\n".join("version = 99.0" if x.startswith("version =") else x for x in lines))
    (into / "wheels").mkdir()
    flags = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(into / "wheels"))
    pip("wheel", *flags, str(copy))
    return into / "wheels"


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
    "A disk, and a Python that has everything but tunix_rt."

    disk: Path

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
        make_python(self.disk / "opt")

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
            **COMPILED,
            "JAX_COMPILATION_CACHE_DIR": str(self.disk / "root/compiled"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "TUNIX_RT_KAGGLE_ROOT": str(self.disk),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": "https://www.kaggle.com",
            "KAGGLE_DATA_PROXY_URL": nowhere,
            "KAGGLE_CONTAINER_NAME": "kaggle_dressed",
            "HTTPS_PROXY": nowhere,
            "HTTP_PROXY": nowhere,
        }


def make_python(folder: Path) -> None:
    "Make a Python with all that is installed here, tunix_rt's checkout left out."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A plain line is a folder to import from; .pth files in it, and so the checkout, are not read.
    (site / "image.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")


def dress(disk: Path) -> Machine:
    "Dress a folder as a Kaggle machine."
    for folder in ("kaggle/input", "kaggle/working", "root", "dev"):
        (disk / folder).mkdir(parents=True)
    make_python(disk / "opt")
    return Machine(disk)


def is_gone(process: subprocess.Popen[bytes], run: Path) -> bool:
    "Whether a process that was killed has left its run folder."
    from tunix_rt.runs.lock import held

    return process.poll() is not None and not held(run)
