"""kuberay.yaml: what KubeRay and Kubernetes ask of it, and the whole of it against KubeRay's schema.

`rayjob_fields.yaml` says of the fields that are used what the schema says of them. The whole schema is not in this repository:
DFT_KUBERAY_CRD names a file with the RayJob CustomResourceDefinition, as KubeRay's Helm chart (`crds/ray.io_rayjobs.yaml`) or
`kubectl get crd rayjobs.ray.io -o yaml` gives it.
"""

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from dft_cluster.config_file import load
from tests.deploy.dockerfile import last_stage, steps

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "kuberay.yaml").read_text(encoding="utf-8")
JOB, POLICY = yaml.safe_load_all(TEXT)
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, (WORKER,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
PODS = [HEAD["template"]["spec"], WORKER["template"]["spec"]]
CONTAINERS = [pod["containers"][0] for pod in PODS]
IMAGE_HOME = Path("/home/dft/dft-cluster")


def test_it_is_a_job_that_the_operator_takes() -> None:
    """What KubeRay's operator refuses beyond its schema."""
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", JOB["metadata"]["name"])
    assert JOB["spec"]["backoffLimit"] >= 0
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True, "ttlSecondsAfterFinished goes with it alone"
    assert WORKER["minReplicas"] <= WORKER["replicas"] <= WORKER["maxReplicas"]
    for group in (HEAD, WORKER):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_line_is_one_that_the_image_can_run() -> None:
    """Its files are copied into the image, and its config and overrides hold."""
    interpreter, job, config, *overrides = shlex.split(JOB["spec"]["entrypoint"])
    assert interpreter == "python"
    (workdir,) = [
        step.text for step in last_stage(steps(ROOT / "docker" / "Dockerfile.cuda")) if step.word == "WORKDIR"
    ]
    assert workdir == str(IMAGE_HOME)
    assert (ROOT / Path(job).relative_to(IMAGE_HOME)).is_file()
    settings = load(ROOT / Path(config).relative_to(IMAGE_HOME), overrides)
    mounted = {mount["mountPath"] for mount in CONTAINERS[0]["volumeMounts"]}
    assert f"/{Path(settings.run.dir).parts[1]}" in mounted
    assert settings.world <= WORKER["replicas"] * int(CONTAINERS[1]["resources"]["limits"]["nvidia.com/gpu"])


def test_every_node_runs_the_same_image_with_the_pinned_ray() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (ray,) = [pin.split("==")[1] for pin in pins if pin.startswith("ray[")]
    assert CLUSTER["rayVersion"] == ray
    launcher = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    assert {container["image"] for container in CONTAINERS} == {launcher["docker"]["image"]}


def test_every_node_sees_the_same_folder_and_keys() -> None:
    for pod, container in zip(PODS, CONTAINERS, strict=True):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == "dft-shared"
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert container["envFrom"] == [{"secretRef": {"name": "dft-keys", "optional": True}}]
    assert "runtimeEnvYAML" not in JOB["spec"], "whoever may ask is told a job's environment"


def test_the_pods_have_no_rights_that_they_do_not_need() -> None:
    for pod, container in zip(PODS, CONTAINERS, strict=True):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000, "the image's user"
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_cluster_is_closed() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    chosen = POLICY["spec"]["podSelector"]["matchLabels"]
    for group in (HEAD, WORKER):
        assert group["template"]["metadata"]["labels"] == chosen
    # The head's service finds its pod by this label, which the operator sets.
    assert "app.kubernetes.io/name" not in chosen
    inside, outside = POLICY["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": chosen}}]}
    assert outside["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert {"podSelector": {"matchLabels": {"job-name": JOB["metadata"]["name"]}}} in outside["from"]
    assert POLICY["spec"]["policyTypes"] == ["Ingress"]


def strict(schema: Any) -> Any:
    """Kubernetes' schemas name the fields there are; with `--validate=strict` any other is an error, and so it is here."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        kept.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        kept = {"type": ["integer", "string"]} | kept
    return kept


FIELDS = yaml.safe_load((Path(__file__).parent / "rayjob_fields.yaml").read_text(encoding="utf-8"))


def schema_of(fields: Any) -> dict[str, Any]:
    """A JSON schema out of `rayjob_fields.yaml`'s notation."""
    if isinstance(fields, list):
        return {"type": "array", "items": schema_of(fields[0])}
    if isinstance(fields, dict):
        if "any" in fields:
            return {"type": "object", "additionalProperties": schema_of(fields["any"])}
        return {
            "type": "object",
            "properties": {name.rstrip("*"): schema_of(kind) for name, kind in fields.items()},
            "required": [name.rstrip("*") for name in fields if name.endswith("*")],
        }
    if fields in FIELDS:
        return schema_of(FIELDS[fields])
    if " | " in fields:
        return {"enum": fields.split(" | ")}
    return {"x-kubernetes-int-or-string": True} if fields == "int-or-string" else {"type": fields}


@pytest.fixture(scope="module", params=["the fields that are used", "the whole CRD"])
def kuberay(request: pytest.FixtureRequest) -> jsonschema.Draft7Validator:
    if request.param != "the whole CRD":
        return jsonschema.Draft7Validator(strict(schema_of(FIELDS["rayjob"])))
    if "DFT_KUBERAY_CRD" not in os.environ:
        pytest.skip("DFT_KUBERAY_CRD does not name KubeRay's RayJob CRD")
    definition = yaml.safe_load(Path(os.environ["DFT_KUBERAY_CRD"]).read_text(encoding="utf-8"))
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return jsonschema.Draft7Validator(strict(version["schema"]["openAPIV3Schema"]))


def problems(job: dict[str, Any], kuberay: jsonschema.Draft7Validator) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in kuberay.iter_errors(job)]


def test_kuberay_s_own_schema_takes_it(kuberay: jsonschema.Draft7Validator) -> None:
    assert problems(JOB, kuberay) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("backoffLimit: 3", "backoffLimit: three"),
        ("shutdownAfterJobFinishes: true", "shutDownAfterJobFinishes: true"),
        ("mode: token", "mode: tokens"),
        ("groupName: gpu", "name: gpu"),
        ("claimName: dft-shared", "claim: dft-shared"),
        ('num-cpus: "0"', "num-cpus: 0"),
        ("containerPort: 6379", "containerPort: gcs"),
        ("minReplicas: 1", "leastReplicas: 1"),
        ("medium: Memory", "media: Memory"),
    ],
)
def test_kuberay_s_own_schema_sees_what_is_wrong(kuberay: jsonschema.Draft7Validator, old: str, new: str) -> None:
    assert old in TEXT
    job, _ = yaml.safe_load_all(TEXT.replace(old, new))
    assert problems(job, kuberay) != []
