"""Runs on an engine with more machines: what is written for it, and two processes under Slurm.

The scripts are read by bash and, where they are installed, by shellcheck and the schemas of
Kubernetes; nightly trains with two processes, kills one, and hands a script to Slurm itself
(apt install slurmctld slurmd slurm-client munge).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compile_fast import COMPILE_FAST

from tunix_rt.cli.app import main
from tunix_rt.core.files import read_jsonl_log
from tunix_rt.core.settings import settings

CHECKOUT = Path(__file__).resolve().parent.parent
DEPLOY = CHECKOUT / "deploy/kubernetes"
NIGHTLY = pytest.mark.nightly
TRAINED = "-p max_steps=8 -p batch_size=8 -p seq_length=64 -p warmup_steps=2 -p checkpoint_every=4"
TRAINED += " -p validate_every=4 -p log_every=2 -p vocabulary=400"
COMMAND = [sys.executable, "-c", "from tunix_rt.cli.app import main; main()"]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Iterator[Any]:
    "Type `launch` with some options, and read what it writes."
    monkeypatch.setenv("TUNIX_RT_ROOT", str(tmp_path))
    settings.cache_clear()

    def write(line: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["launch", "train", *line.split()])
        shown = capsys.readouterr()
        return shown.out if not end.value.code else f"{end.value.code}: {shown.err}"

    yield write
    settings.cache_clear()


def test_a_script_for_slurm_is_one_for_bash(written: Any, tmp_path: Path) -> None:
    script = written("--on slurm --hosts 2 --devices-per-host 8 -p max_steps=9 --minutes 60")
    assert "#SBATCH --nodes=2" in script and "--resume --unfinished-code 75" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    if shellcheck := shutil.which("shellcheck"):
        path = tmp_path / "a.sbatch"
        path.write_text(script)
        assert not subprocess.run([shellcheck, path], capture_output=True, text=True).stdout


def test_the_same_request_is_the_same_job(written: Any) -> None:
    first = written("--on slurm -p max_steps=9 -p seed=1")
    assert first == written("--on slurm -p seed=1 -p max_steps=9") or "-p seed=1" in first
    assert written("--on slurm -p max_steps=9") != written("--on slurm -p max_steps=10")


def closed(required: str = "", **known: Any) -> dict[str, Any]:
    "A schema for an object with no other fields than these."
    what = {"type": "object", "additionalProperties": False}
    return {**what, "properties": known, "required": required.split()}


TEXT, TRUTH, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
LABELS = {"type": "object", "additionalProperties": TEXT}
NETWORK = closed(enableDNSHostnames=TRUTH, subdomain=TEXT, publishNotReadyAddresses=TRUTH)
STRATEGY = {"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]}
FAILURES = closed(maxRestarts=COUNT, restartStrategy=STRATEGY, rules={"type": "array"})
JOBS = closed("name template", name=TEXT, groupName=TEXT, replicas=COUNT, template={})
JOBSET = closed(  # Fields of jobset.x-k8s.io/v1alpha2 that we write, and their neighbors
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"}, kind={"const": "JobSet"},
    metadata=closed("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS),
    spec=closed(
        network=NETWORK, failurePolicy=FAILURES, suspend=TRUTH, ttlSecondsAfterFinished=COUNT,
        replicatedJobs={"type": "array", "items": JOBS},
    ),
)  # fmt: skip
WHERE = "--on kubernetes --image me/a:1"
SLICE = "--devices-per-host 4 --accelerator tpu-v5-lite-podslice --topology 4x4"


@pytest.mark.parametrize(
    "line",
    [
        f"{WHERE} --claim tunix-rt",
        f"{WHERE} --run-dir s3://bucket/runs/mine --env AWS_REGION=here --minutes 60",
        f"{WHERE} --claim a --hosts 4 {SLICE} --namespace b --queue c",
        f"{WHERE} --claim a --hosts 2 --devices-per-host 8 --accelerator H100 --restarts 0",
    ],
)
def test_every_jobset_and_its_job_fit_the_schemas(written: Any, line: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = yaml.safe_load(written(line))
    jsonschema.validate(made, JOBSET)
    wrong = {**made, "spec": {**made["spec"], "maxRestarts": 3}}
    with pytest.raises(jsonschema.ValidationError, match="maxRestarts"):
        jsonschema.validate(wrong, JOBSET)
    validate = pytest.importorskip("kubernetes_validate")
    for each in made["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
        validate.validate({**job, **each["template"]}, validate.latest_version(), strict=True)


def test_a_run_in_a_bucket_needs_no_claim(written: Any) -> None:
    made = written(f"{WHERE} --run-dir s3://bucket/runs/mine --hosts 2")
    assert "persistentVolumeClaim" not in made and "s3://bucket/runs/mine" in made
    assert "or a run_dir in a bucket" in written(WHERE)
    script = written("--on slurm --hosts 2 --run-dir gs://bucket/runs/mine")
    assert "--run-dir gs://bucket/runs/mine --resume" in script
    assert "every node of the cluster mounts" in written("--on ray --run-dir s3://bucket/runs/mine")


def test_a_jobset_restarts_all_of_its_pods_and_recognizes_them(written: Any) -> None:
    where = "--on kubernetes --hosts 4 --devices-per-host 8 --image me/a:1 --claim tunix-rt"
    made = yaml.safe_load(written(f"{where} --queue research --cpus-per-host 16"))
    [hosts] = made["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    [container] = job["template"]["spec"]["containers"]
    known = {each["name"]: each.get("value") for each in container["env"]}
    name = made["metadata"]["name"]
    assert known["JAX_COORDINATOR_ADDRESS"] == f"{name}-hosts-0-0.{name}:8476"


@pytest.mark.skipif("TUNIX_RT_SKYPILOT" not in os.environ, reason="names a Python with skypilot")
def test_skypilot_loads_the_task(written: Any, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    where = "--on sky --hosts 2 --devices-per-host 8 --accelerator H100 --storage gs://bucket/runs"
    path.write_text(written(f"{where} --image me/a:1 --memory-per-host 64G --cpus-per-host 8"))
    python = Path(os.environ["TUNIX_RT_SKYPILOT"]).absolute()
    code = f"import sky; t = sky.Task.from_yaml({str(path)!r}); print(t.num_nodes, *t.resources)"
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True,
        env=known | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 " in done.stdout and "H100" in done.stdout


def test_an_option_of_another_engine_is_refused(written: Any) -> None:
    assert "only to kubernetes" in written("--on slurm --queue research")
    assert "no time limit" in written("--on sky --minutes 60")
    assert "has no parameter" in written("--on sky -p step=1")


def resources() -> list[dict[str, Any]]:
    "All objects of the kustomize folder."
    parts = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    return [
        each for part in parts for each in yaml.safe_load_all((DEPLOY / part).read_text()) if each
    ]


def test_the_kustomize_folder_has_the_services_of_docker_compose() -> None:
    found = {(each["kind"], each["metadata"]["name"]): each for each in resources()}
    pods = {
        name: each["spec"]["template"]
        for (kind, name), each in found.items()
        if kind in ("Deployment", "StatefulSet")
    }
    assert set(pods) == {"database", "server", "worker"}
    for name, pod in pods.items():
        labels = pod["metadata"]["labels"]
        assert labels == {"app.kubernetes.io/component": name}
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            for variable in container.get("env", []):  # secrets only by reference
                secret = "PASSWORD" in variable["name"] or "TOKEN" in variable["name"]
                assert not secret or "secretKeyRef" in variable["valueFrom"]
    for kind, name in found:
        if kind == "Service":
            assert found[kind, name]["spec"]["selector"] == pods[name]["metadata"]["labels"]
    compose = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    [server], [worker] = (pods[name]["spec"]["containers"] for name in ("server", "worker"))
    assert server["args"] == compose["api"]["command"]
    assert worker["args"] == compose["worker"]["command"]
    assert server["readinessProbe"]["httpGet"]["path"] == "/api/ready"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kustomize_builds_the_folder() -> None:
    made = subprocess.run(["kubectl", "kustomize", DEPLOY], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    objects = [each for each in yaml.safe_load_all(made.stdout) if each]
    assert len(objects) == len(resources())
    assert {each["metadata"]["namespace"] for each in objects} == {"tunix-rt"}
    validate = pytest.importorskip("kubernetes_validate")
    for each in objects:
        validate.validate(each, validate.latest_version(), strict=True)


def test_the_kustomize_folder_fits_the_schemas() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for each in resources():
        validate.validate(each, validate.latest_version(), strict=True)


def environment(root: Path, **more: str) -> dict[str, str]:
    "Variables for a process with one pretended device."
    known = {"JAX_PLATFORMS": "cpu", "TUNIX_RT_ROOT": str(root), "PYTHONPATH": str(CHECKOUT)}
    return {**os.environ, **known, "XLA_FLAGS": COMPILE_FAST, **more}


def free_port() -> int:
    "Ask the system for a port that nobody listens on."
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start(root: Path, run: str, count: int) -> list[subprocess.Popen[str]]:
    "Start the same command on so many hosts, as srun would."
    words = ["train", *TRAINED.split(), "--run-dir", run, "--resume", "--unfinished-code", "75"]
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    job["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            [*COMMAND, *words],
            env=environment(root, **job, SLURM_PROCID=str(index), SLURM_LOCALID=str(index)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    "The part of metrics.jsonl that must not depend on the number of hosts."
    lines = read_jsonl_log(run / "metrics.jsonl")
    return [(line["step"], line["loss"], line.get("validation_loss")) for line in lines]


def same(some: list[Any], others: list[Any]) -> bool:
    "Compare logs of one device and of two, which add in another order."
    return len(some) == len(others) and all(
        one == pytest.approx(other, abs=1e-4) for one, other in zip(some, others, strict=True)
    )


def wait_for(done: Any, seconds: float = 300) -> None:
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A root with a dataset, and a run on one host to compare with."
    root = tmp_path_factory.mktemp("hosts")
    dataset = "data/datasets/dev-reasoning-v1"
    shutil.copytree(CHECKOUT / dataset, root / dataset)
    [alone] = start(root, "outputs/runs/alone", 1)
    output = alone.communicate(timeout=600)[0]
    assert alone.returncode == 0, output[-3000:]
    return root


@NIGHTLY
def test_one_of_two_processes_is_killed_and_one_host_finishes_the_run(place: Path) -> None:
    run = place / "outputs/runs/two"
    both = start(place, str(run), 2)
    wait_for(lambda: (run / "checkpoints/4").is_dir() or both[0].poll() is not None)
    both[1].kill()
    begun = time.monotonic()
    told = both[0].communicate(timeout=120)[0]
    assert both[0].returncode == 1 and "lost one of the other 1 processes" in told, told[-3000:]
    assert time.monotonic() - begun < 60
    both[1].communicate()
    [left] = start(place, str(run), 1)
    assert left.wait(600) == 0, left.communicate()[0][-3000:]
    assert same(losses(run), losses(place / "outputs/runs/alone"))
    facts = json.loads((run / "run.json").read_text())
    assert facts["results"]["resumed_from"] == 4 and len(facts["resumed_at"]) == 1
    [again] = start(place, str(run), 1)
    assert again.wait(60) == 0, "what is completed is done already"


SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdTimeout=10
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    "A Slurm of two nodes, both on this machine; the environment that finds it."
    needed = ["munged", "slurmctld", "slurmd", "sbatch"]
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = {name: shutil.which(name, path=path) for name in needed}
    if not all(programs.values()):
        pytest.skip(f"{', '.join(name for name in needed if not programs[name])} not installed")
    for name in ("state", "spool-n1", "spool-n2"):
        (tmp_path / name).mkdir()
    user, ports = os.environ.get("USER", "root"), [free_port() for _ in range(3)]
    conf, key = tmp_path / "slurm.conf", tmp_path / "munge.key"
    conf.write_text(SLURM.format(host=socket.gethostname(), user=user, ports=ports, home=tmp_path))
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    names = {"socket": "munge.socket", "pid-file": "m.pid", "log-file": "m.log"}
    names |= {"seed-file": "m.seed"}
    munge = [f"--{name}={tmp_path / file}" for name, file in names.items()]
    known = {**os.environ, "SLURM_CONF": str(conf)}
    started = [
        subprocess.Popen([programs["munged"], "-F", "--force", f"--key-file={key}", *munge]),
        subprocess.Popen([programs["slurmctld"], "-D", "-c", "-f", conf]),
        *(subprocess.Popen([programs["slurmd"], "-D", "-N", n, "-f", conf]) for n in ("n1", "n2")),
    ]
    try:
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        wait_for(lambda: subprocess.run(idle, env=known, capture_output=True).stdout == b"2\n", 60)
        yield {"SLURM_CONF": str(conf)}
    finally:
        for process in reversed(started):  # munged last: the others need it to say goodbye
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@NIGHTLY
def test_slurm_runs_the_script_and_takes_it_up_again(place: Path, slurm: dict[str, str]) -> None:
    run, script = place / "outputs/runs/slurm", place / "job.sbatch"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    known = environment(place, PATH=programs, **slurm)
    address = f"JAX_COORDINATOR_ADDRESS=127.0.0.1:{free_port()}"  # n1 is no name of this machine
    options = f"--on slurm --hosts 2 --name two --run-dir {run} --env {address} {TRAINED}"
    words = [*COMMAND, "launch", "train", *options.split(), "--output", str(script)]
    subprocess.run(words, env=known, check=True, cwd=place)

    def ask(*words: str) -> str:
        return subprocess.run(words, env=known, cwd=place, capture_output=True, text=True).stdout

    job = ask("sbatch", "--parsable", str(script)).strip()
    wait_for(lambda: (run / "metrics.jsonl").is_file() and losses(run), 600)
    ask("scancel", "--signal=TERM", job)
    wait_for(lambda: ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING", 120)
    assert json.loads((run / "run.json").read_text())["status"] == "cancelled"
    ask("scontrol", "update", f"jobid={job}", "starttime=now")
    wait_for(lambda: not ask("squeue", "-h", "-j", job, "-o", "%T").strip(), 900)
    said = (place / "two.slurm.log").read_text()
    assert same(losses(run), losses(place / "outputs/runs/alone")), said[-3000:]
