"""Uses the core as on Windows: without the modules and functions that only Unix has.

``python without_unix.py OUT`` prepares synthetic chips, pre-trains on them with worker processes,
and reconstructs and probes, all in ``OUT``.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.resource_tracker
import sys
import warnings
from pathlib import Path

MODULES = (
    "_posixshmem", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix_ipc", "pty", "pwd",
    "readline", "resource", "spwd", "syslog", "termios", "tty",
)  # fmt: skip
"""Modules of the standard library that Windows lacks."""
FUNCTIONS = {
    "os": (
        "chown", "chroot", "confstr", "ctermid", "fchdir", "fchmod", "fchown", "fork", "forkpty",
        "fpathconf", "fstatvfs", "getegid", "geteuid", "getgid", "getgroups", "getloadavg",
        "getpgid", "getpgrp", "getpriority", "getresgid", "getresuid", "getsid", "getuid",
        "killpg", "lchown", "lockf", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2",
        "posix_fadvise", "posix_fallocate", "posix_spawn", "posix_spawnp", "pread", "preadv",
        "pwrite", "pwritev", "readv", "sched_getaffinity", "sched_setaffinity", "sched_yield",
        "sendfile", "setgid", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync",
        "sysconf", "tcgetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "waitid", "writev",
    ),
    "signal": (
        "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL", "SIGPIPE",
        "SIGPROF", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2",
        "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer",
        "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo",
    ),
    "socket": ("AF_UNIX", "SO_REUSEPORT"),
}  # fmt: skip
"""What modules that Windows has lack there."""

# Without these, libraries that ask for the platform's name, which is still this one's, fail.
_KEPT = {"os.sendfile", "os.statvfs", "os.sysconf", "os.wait", "os.pread", "os.getpgid",
         "os.geteuid", "os.getuid", "signal.SIGCHLD", "signal.SIGCONT", "signal.SIGHUP",
         "signal.SIGKILL", "signal.SIGSTOP", "signal.SIGUSR1", "signal.SIGUSR2",
         "socket.AF_UNIX"}  # fmt: skip


def remove_unix() -> None:
    """From here on nothing that this process imports or calls finds them."""
    for name in MODULES:
        sys.modules[name] = None
    for module, names in FUNCTIONS.items():
        for name in names:
            if f"{module}.{name}" not in _KEPT and hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    for method in set(contexts) - {"spawn"}:
        del contexts[method]
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.resource_tracker._HAVE_SIGMASK = False  # type: ignore[attr-defined]
    multiprocessing.get_all_start_methods = lambda: ["spawn"]


def main(out: Path) -> None:
    """The core's steps, at toy size."""
    import sklearn.linear_model  # noqa: F401

    remove_unix()
    warnings.filterwarnings("error", category=EncodingWarning, module=r"multimae_eo\b")
    import multimae_eo
    from multimae_eo.sources.synthetic import SyntheticSource

    store = multimae_eo.prepare(SyntheticSource(chips=24, size=32), out=out / "store")
    run = multimae_eo.pretrain(
        "quickstart",
        data=store,
        out=out / "run",
        device="cpu",
        overrides=[
            "--modalities=[rgb, elevation, landcover]",
            "--model.encoder={width: 16, depth: 1, heads: 2}",
            "--model.decoder={width: 8, depth: 1, heads: 2}",
            "--data.chip=32",
            "--data.batch_size=4",
            "--data.workers=1",
            "--masking.num_visible_tokens=8",
            "--run.epochs=1",
            "--run.precision=32-true",
        ],
    )
    model = out / "run/model"
    multimae_eo.reconstruct(
        model, data=out / "store", out=out / "pictures", inputs=["rgb"], limit=1, device="cpu"
    )
    print(type(run).__name__, *sorted(p.name for p in out.iterdir()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
