"""Stand in for ``dask_jobqueue`` and ``dask_kubernetes.operator``: two workers of this process.

They take the arguments of the real classes that docs/many_scenes.md uses, and no others;
``tests/test_many_scenes_page.py`` compares them with the packages where these are installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

SLURM = {
    "queue", "account", "cores", "processes", "memory", "walltime", "job_extra_directives",
    "worker_extra_args",
}  # fmt: skip
SPEC = {"name", "image", "n_workers", "resources", "env", "worker_command"}


def _local() -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    )


def slurm_cluster(**options: object) -> Any:
    """``dask_jobqueue.SLURMCluster``: ``scale(jobs=N)`` is that of N jobs."""
    assert options.keys() <= SLURM, options.keys() - SLURM
    cluster = _local()
    whole = cluster.scale

    def scale(n: int | None = None, jobs: int = 0) -> Any:
        return whole(n if jobs == 0 else 2)

    cluster.scale = scale
    return cluster


def make_cluster_spec(
    name: str,
    image: str = "",
    n_workers: int | None = None,
    resources: object = None,
    env: object = None,
    worker_command: Sequence[str] | str = "dask-worker",
) -> dict[str, Any]:
    """``dask_kubernetes.operator.make_cluster_spec``: the parts that are changed."""
    container = {"name": "worker", "image": image, "args": [worker_command], "env": env}
    worker = {"replicas": n_workers, "spec": {"containers": [container | {"resources": resources}]}}
    return {"kind": "DaskCluster", "metadata": {"name": name}, "spec": {"worker": worker}}


def kube_cluster(*, custom_cluster_spec: dict[str, Any]) -> Any:
    """``dask_kubernetes.operator.KubeCluster``."""
    pod = custom_cluster_spec["spec"]["worker"]["spec"]
    mounts = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
    assert mounts == {v["name"] for v in pod["volumes"]}
    return _local()


def modules() -> dict[str, ModuleType]:
    """What the page imports."""
    jobqueue, kubernetes = ModuleType("dask_jobqueue"), ModuleType("dask_kubernetes")
    operator = ModuleType("dask_kubernetes.operator")
    jobqueue.SLURMCluster = slurm_cluster  # type: ignore[attr-defined]
    operator.KubeCluster = kube_cluster  # type: ignore[attr-defined]
    operator.make_cluster_spec = make_cluster_spec  # type: ignore[attr-defined]
    kubernetes.operator = operator  # type: ignore[attr-defined]
    return {
        "dask_jobqueue": jobqueue,
        "dask_kubernetes": kubernetes,
        "dask_kubernetes.operator": operator,
    }
