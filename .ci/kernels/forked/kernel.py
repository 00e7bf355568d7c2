"""A kernel that is forked off a process with the slow imports done.

Nearly two hundred notebooks are run by the tests, each in a kernel of its own, and most kernels
spend longer on importing jax than on the notebook. Here one process, `serve`, imports what is slow
and starts nothing with it. Jupyter starts this file as it would start a kernel; that process only
asks the server for a fork, hands over its folder, environment and output, and waits for the end.
"""

import json
import os
import signal
import socket
import sys
import threading

DOOR = "TUNIX_RT_TEST_KERNELS"  # The variable that names the server's socket
SLOW = "jax flax.nnx optax orbax.checkpoint transformers sqlalchemy.orm fastapi optuna"


def ask(connection_file: str) -> None:
    "Stand for a kernel: end when it does, and take it along when killed."
    given = [os.getcwd(), dict(os.environ), connection_file]
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ[DOOR])
        socket.send_fds(line, [b"!"], [1, 2])
        line.sendall(json.dumps(given).encode() + b"\n")
        line.recv(1)


def serve(door: str) -> None:
    "Fork a kernel for each who asks, until killed."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in ("ipykernel.kernelapp", *SLOW.split()):
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(door)
        listening.listen()
        print("open", flush=True)
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                become_kernel(line)
            line.close()


def become_kernel(line: socket.socket) -> None:
    "Be the kernel that was asked for."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    _, output, _, _ = socket.recv_fds(line, 1, 2)
    for number, standard in zip(output, (1, 2), strict=True):
        os.dup2(number, standard)
    with line.makefile() as text:
        folder, environment, connection_file = json.loads(text.readline())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.pop("JPY_PARENT_PID", None)  # its parent is the server, which is not to be watched
    sys.path.insert(0, "")

    def follow() -> None:
        line.recv(1)
        os._exit(1)  # whoever stood for this kernel was killed

    threading.Thread(target=follow, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=["-f", connection_file])
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else ask(sys.argv[1])
