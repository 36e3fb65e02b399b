"""The clusters of docs/many_scenes.md, where their packages are installed, and its job script."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.support import cluster_stand_ins
from tests.support.paths import ROOT

PAGE = ROOT / "docs/many_scenes.md"


def block(word: str) -> str:
    """The page's Python block that holds a word, up to the work on scenes."""
    parts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    return next(p for p in parts if word in p)


def test_slurm_gets_a_job_of_sixteen_workers():
    jobqueue = pytest.importorskip("dask_jobqueue")
    text = block("SLURMCluster(").split("cluster.scale")[0]
    variables: dict[str, Any] = {}
    exec(text.replace("SLURMCluster(", "SLURMCluster(scheduler_options={'dashboard': False}, "),
         variables)  # fmt: skip
    cluster = variables["cluster"]
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    assert isinstance(cluster, jobqueue.SLURMCluster)
    for line in ("#SBATCH -p cpu", "#SBATCH -A project", "#SBATCH --requeue", "-t 08:00:00"):
        assert line in script
    assert "--nworkers 16" in script
    assert "--nthreads 1" in script
    assert "--lifetime 7h" in script


def test_kubernetes_gets_a_spec_with_the_volume():
    operator = pytest.importorskip("dask_kubernetes.operator")
    text = block("KubeCluster(").split("with KubeCluster")[0]
    variables: dict[str, Any] = {}
    exec(text, variables)
    spec = variables["spec"]
    assert operator.KubeCluster
    worker = spec["spec"]["worker"]
    assert worker["replicas"] == 100
    assert worker["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/scenes"
    stand_in = cluster_stand_ins.make_cluster_spec("a", n_workers=1)["spec"]["worker"]
    assert stand_in.keys() <= worker.keys()


def test_the_job_script_is_shell():
    script = ROOT / "examples/dask_slurm.sh"
    done = subprocess.run(
        [str(shutil.which("bash")), "-n", str(script)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert script.stat().st_mode & 0o111
