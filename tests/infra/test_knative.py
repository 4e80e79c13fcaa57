"""The Knative manifests: what we render is valid, and what is wrong is refused by name."""

import copy
import tomllib
from pathlib import Path

import pytest
from knative_schema import AUTOSCALING
from kustomize import FOLDERS, render

import knative

TEMPLATE_METADATA = ("spec", "template", "metadata")
POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
VOLUME = {"name": "cache", "emptyDir": {}}
MOUNT = {"name": "cache", "mountPath": "/tmp"}
PINNED = {"percent": 10, "revisionName": "predict-1", "tag": "old"}


def scaling(name: str) -> tuple:
    return (*TEMPLATE_METADATA, "annotations", AUTOSCALING + name)


def service_of(folder: str) -> dict:
    (service,) = render(folder)
    return copy.deepcopy(service)


def with_value(service: dict, path: tuple, value: object) -> dict:
    """`service` with `value` at `path`, making the maps on the way."""
    *parents, last = path
    place = service
    for key in parents:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return service


@pytest.mark.parametrize("folder", FOLDERS)
def test_rendered_service_is_valid(folder):
    assert knative.mistakes(service_of(folder)) == []


# Where, what, and what the message must name when that is not the last of the path.
REFUSED = {
    "misspelt field": ((*POD, "containerConcurency"), 4),
    "field behind a feature flag": ((*POD, "nodeSelector"), {"gpu": "yes"}),
    "list behind a feature flag": ((*POD, "tolerations"), [{"key": "gpu"}]),
    "field that Knative sets": ((*CONTAINER, "lifecycle"), {}),
    "api version": (("apiVersion",), "serving.knative.dev/v2"),
    "number as text": ((*CONTAINER, "ports", 0, "containerPort"), "eighty"),
    "no container": ((*POD, "containers"), []),
    "name in capitals": (("metadata", "name"), "Predict"),
    "name of 64 characters": (("metadata", "name"), "p" * 64),
    "name of another's revision": ((*TEMPLATE_METADATA, "name"), "other-1"),
    "annotation of the revision": (
        ("metadata", "annotations", f"{AUTOSCALING}metric"),
        "rps",
    ),
    "label of Knative": (("metadata", "labels", "serving.knative.dev/x"), "y"),
    "max-scale below 0": (scaling("max-scale"), "-1"),
    "min-scale above max-scale": (scaling("min-scale"), "30", "min-scale"),
    "annotation without quotes": (scaling("min-scale"), 1),
    "activation-scale of 1": (scaling("activation-scale"), "1"),
    "activation-scale above max-scale": (scaling("activation-scale"), "99"),
    "initial-scale of 0": (scaling("initial-scale"), "0"),
    "misspelt annotation": (scaling("maxscale"), "3"),
    "class": (scaling("class"), "vpa.autoscaling.knative.dev"),
    "metric of the other class": (scaling("metric"), "cpu"),
    "target of 0": (scaling("target"), "0"),
    "utilization above 100": (scaling("target-utilization-percentage"), "101"),
    "burst capacity below -1": (scaling("target-burst-capacity"), "-2"),
    "window below 6 s": (scaling("window"), "5s"),
    "window of half seconds": (scaling("window"), "6500ms"),
    "delay above 1 h": (scaling("scale-down-delay"), "2h"),
    "retention that is no duration": (
        scaling("scale-to-zero-pod-retention-period"),
        "soon",
    ),
    "panic window below 1": (scaling("panic-window-percentage"), "0.5"),
    "panic threshold below 110": (scaling("panic-threshold-percentage"), "100"),
    "concurrency above 1000": ((*POD, "containerConcurrency"), 5000),
    "timeout above 600": ((*POD, "timeoutSeconds"), 4000),
    "response start above timeout": ((*POD, "responseStartTimeoutSeconds"), 60),
    "idle above timeout": ((*POD, "idleTimeoutSeconds"), 60),
    "token": ((*POD, "automountServiceAccountToken"), True),
    "image that is none": ((*CONTAINER, "image"), "Bad Image:::"),
    "digest too short": ((*CONTAINER, "image"), "ghcr.io/a/b@sha256:12"),
    "name of queue-proxy": ((*CONTAINER, "name"), "queue-proxy"),
    "two ports": (
        (*CONTAINER, "ports"),
        [{"containerPort": 8080}, {"containerPort": 8081}],
    ),
    "two containers without a port": (
        (*POD, "containers"),
        [{"image": "ab", "volumeMounts": [MOUNT]}] * 2,
        "ports",
    ),
    "port name": ((*CONTAINER, "ports", 0, "name"), "grpcx"),
    "port of queue-proxy": ((*CONTAINER, "ports", 0, "containerPort"), 8012),
    "protocol": ((*CONTAINER, "ports", 0, "protocol"), "UDP"),
    "variable of Knative": ((*CONTAINER, "env", 0, "name"), "PORT"),
    "quantity that is none": ((*CONTAINER, "resources", "requests", "cpu"), "lots"),
    "request above limit": ((*CONTAINER, "resources", "requests", "memory"), "2Gi"),
    "privileged": ((*CONTAINER, "securityContext", "privileged"), True),
    "added capability": (
        (*CONTAINER, "securityContext", "capabilities", "add"),
        ["NET_RAW"],
    ),
    "user below 0": ((*CONTAINER, "securityContext", "runAsUser"), -1),
    "threshold without period": ((*CONTAINER, "readinessProbe", "failureThreshold"), 3),
    "two probes in one": ((*CONTAINER, "readinessProbe", "tcpSocket"), {}),
    "probe of another port": (
        (*CONTAINER, "readinessProbe", "httpGet", "port"),
        "http",
    ),
    "probe of nothing": ((*CONTAINER, "livenessProbe"), {"periodSeconds": 1}),
    "second success asked": ((*CONTAINER, "livenessProbe", "successThreshold"), 2),
    "hostPath": (
        (*POD, "volumes"),
        [{"name": "x", "hostPath": {"path": "/x"}}],
        "hostPath",
    ),
    "volume of two kinds": ((*POD, "volumes"), [{**VOLUME, "secret": {}}]),
    "volume mounted nowhere": ((*CONTAINER, "volumeMounts"), [], "volumes"),
    "mount of no volume": ((*POD, "volumes"), [], "volumeMounts"),
    "mount of the root": ((*CONTAINER, "volumeMounts"), [{**MOUNT, "mountPath": "/"}]),
    "traffic of 90 %": (("spec", "traffic"), [{"percent": 90}]),
    "tag twice": (("spec", "traffic"), [{"percent": 50, "tag": "a"}] * 2),
    "pinned and latest": (
        ("spec", "traffic"),
        [{**PINNED, "percent": 100, "latestRevision": True}],
    ),
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_wrong_value_is_refused_by_name(folder, case):
    path, value, named = case if len(case) == 3 else (*case, case[0][-1])
    mistakes = knative.mistakes(with_value(service_of(folder), path, value))
    assert mistakes, "accepted"
    assert [mistake for mistake in mistakes if named not in mistake] == []


ACCEPTED = {
    "no bound": (scaling("max-scale"), "0"),
    "activator always in the path": (scaling("target-burst-capacity"), "-1"),
    "window": (scaling("window"), "1m30s"),
    "foreign annotation": (
        (*TEMPLATE_METADATA, "annotations", "prometheus.io/scrape"),
        "true",
    ),
    "revision name": ((*TEMPLATE_METADATA, "name"), "predict-1"),
    "most concurrency": ((*POD, "containerConcurrency"), 1000),
    "longest timeout": ((*POD, "timeoutSeconds"), 600),
    "tag and digest": (
        (*CONTAINER, "image"),
        f"localhost:5000/a/b:1@sha256:{'0' * 64}",
    ),
    "half a core": ((*CONTAINER, "resources", "requests", "cpu"), "500m"),
    "port by name": ((*CONTAINER, "readinessProbe", "httpGet", "port"), "h2c"),
    "canary": (("spec", "traffic"), [{"percent": 90, "latestRevision": True}, PINNED]),
}


@pytest.mark.parametrize(("path", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_right_value_is_accepted(path, value):
    assert knative.mistakes(with_value(service_of("base"), path, value)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_autoscaler_acts_before_the_pod_is_full(folder):
    service = service_of(folder)
    target = service["spec"]["template"]["metadata"]["annotations"][f"{AUTOSCALING}target"]
    assert float(target) < service["spec"]["template"]["spec"]["containerConcurrency"]


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "base"])
def test_overlay_runs_the_version_of_the_workspace(folder):
    workspace = tomllib.loads((Path(__file__).parents[2] / "Cargo.toml").read_text())
    image = service_of(folder)["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.partition(":")[2] == workspace["workspace"]["package"]["version"]
