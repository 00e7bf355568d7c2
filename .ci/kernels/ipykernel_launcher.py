"""A kernel that is forked off a process with the slow imports done.

The tests run hundreds of notebooks, each in a kernel of its own, and most kernels spend longer on
importing jax than on the notebook. Here one process, `serve`, imports what is slow and starts
nothing with it. The folder of this file is first on PYTHONPATH, so `python -m ipykernel_launcher`
starts `stand_in`: it asks the server for a fork, hands over its folder, environment and output,
passes signals on, and ends when the fork does. Where libraries would be set up otherwise than they
are in the server, the real launcher runs; and so it does without the variable that names the door.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading

DOOR = "TUNIX_RT_TEST_KERNELS"  # The variable that names the server's socket
SLOW = "jax flax.nnx optax orbax.checkpoint transformers sqlalchemy.orm fastapi optuna uvicorn"
SLOW += " httpx matplotlib.pyplot math_verify papermill nbclient typer pydantic_settings alembic"
SLOW += " fastcore.test ipykernel.debugger IPython.core.completer"
# Not pandas: on import it looks whether it is in a notebook, and lays tables out accordingly.
READ = ("JAX_", "HF_", "TRANSFORMERS_")  # on import, by the slow ones


def surroundings() -> list:
    "What has to be the same for a fork to stand for a process of its own."
    read = {name: value for name, value in os.environ.items() if name.startswith(READ)}
    return [sys.prefix, sorted(read.items())]


def stand_in(arguments: list[str]) -> None:
    "Stand for a kernel: end when it does, and take it along when killed."
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[DOOR])
        socket.send_fds(line, [b"!"], [1, 2])
        given = [surroundings(), os.getcwd(), dict(os.environ), arguments]
        line.sendall(json.dumps(given).encode() + b"\n")
        answer = line.makefile().readline()
        if not answer.strip().isdigit():
            return
        kernel = int(answer)

        def pass_on(number: int, frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(kernel, number)

        signal.signal(signal.SIGINT, pass_on)
        signal.signal(signal.SIGTERM, pass_on)
        while os.getppid() == parent:
            if select.select([line], [], [], 1.0)[0]:
                break
    os._exit(0)


def serve(door: str) -> None:
    "Fork a kernel for each who asks, until killed."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in ("ipykernel.kernelapp", *SLOW.split()):
        __import__(name)
    known = json.loads(json.dumps(surroundings()))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(door)
        listening.listen()
        print("open", flush=True)
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                become_kernel(line, known)
            line.close()


def become_kernel(line: socket.socket, known: list) -> None:
    "Be the kernel that was asked for."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, output, _, _ = socket.recv_fds(line, 1, 2)
    for number, standard in zip(output, (1, 2), strict=True):
        os.dup2(number, standard)
        os.close(number)
    with line.makefile() as text:
        wanted, folder, environment, arguments = json.loads(text.readline())
    if wanted != known:
        line.sendall(b"otherwise\n")
        os._exit(0)
    line.sendall(f"{os.getpid()}\n".encode())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)  # its parent is the server, which is not to be watched
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = ["", *(path for path in paths if path not in sys.path)]

    def follow() -> None:
        line.recv(1)
        os.killpg(0, signal.SIGKILL)  # whoever stood for this kernel was killed

    threading.Thread(target=follow, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)
    os._exit(0)


def real() -> None:
    "Be what stands behind this file on the path."
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)


if __name__ == "__main__" and sys.argv[1:2] == ["serve"]:
    serve(sys.argv[2])
elif __name__ == "__main__":
    if DOOR in os.environ:
        stand_in(sys.argv[1:])
    real()
