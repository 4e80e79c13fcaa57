"""What a Knative cluster, its features at their defaults, would say of a Service.

`mistakes(service)` gives every reason to refuse it, as "path: reason", from two layers:

    SCHEMA   which fields there are, and the range of each
    RULES    what relates fields to one another, one function each

Stricter than Knative in one point: an unknown autoscaling annotation, or one in the older camel
case, is refused; a cluster would ignore the first, so that a typo goes unseen.
"""

from collections.abc import Iterator
from posixpath import normpath

from jsonschema import Draft202012Validator
from knative_schema import AUTOSCALING, FORMATS, SCHEMA, quantity

Mistakes = Iterator[tuple[str, str]]

PROBE_HANDLERS = ["httpGet", "tcpSocket", "exec", "grpc"]
VOLUME_KINDS = ["secret", "configMap", "projected", "emptyDir"]
RESERVED_MOUNTS = {"/", "/dev", "/dev/log"}

REVISION = "spec.template.spec"
ANNOTATIONS = "spec.template.metadata.annotations"


def mistakes(service: dict) -> list[str]:
    """Every reason to refuse `service`; the rules wait until the schema has no objection."""
    broken = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in Draft202012Validator(SCHEMA, format_checker=FORMATS).iter_errors(service)
    ]
    return broken or [f"{path}: {reason}" for rule in RULES for path, reason in rule(service)]


def _revision(service: dict) -> dict:
    return service["spec"]["template"]["spec"]


def _containers(service: dict) -> Iterator[tuple[str, dict]]:
    for index, container in enumerate(_revision(service)["containers"]):
        yield f"{REVISION}.containers.{index}", container


def _annotations(service: dict) -> dict:
    return service["spec"]["template"].get("metadata", {}).get("annotations", {})


def _exactly_one(path: str, value: dict, kinds: list[str]) -> Mistakes:
    given = [kind for kind in kinds if kind in value]
    if len(given) != 1:
        yield path, f"has {given or 'none'}, needs exactly one of {kinds}"


def _repeated(path: str, items: list[dict], key: str) -> Mistakes:
    values = [item[key] for item in items if key in item]
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield path, f"{key} {value!r} stands more than once"


def service_metadata_has_no_word_of_the_revision(service: dict) -> Mistakes:
    for key in service["metadata"].get("annotations", {}):
        if key.startswith(AUTOSCALING):
            yield f"metadata.annotations.{key}", f"belongs to {ANNOTATIONS}"
    for key in service["metadata"].get("labels", {}):
        if key.startswith("serving.knative.dev/"):
            yield f"metadata.labels.{key}", "is for Knative to set"


def revision_name_starts_with_the_service(service: dict) -> Mistakes:
    name = service["spec"]["template"].get("metadata", {}).get("name")
    prefix = service["metadata"]["name"] + "-"
    if name is not None and not name.startswith(prefix):
        yield "spec.template.metadata.name", f"{name!r} does not start with {prefix!r}"


def scale_bounds_agree(service: dict) -> Mistakes:
    annotations = _annotations(service)
    least, most, activation = (
        int(annotations.get(f"{AUTOSCALING}{name}-scale", 0))
        for name in ("min", "max", "activation")
    )
    if most and most < least:
        yield (
            f"{ANNOTATIONS}.{AUTOSCALING}max-scale",
            f"{most} is less than min-scale, {least}",
        )
    if activation and (activation < least or 0 < most < activation):
        yield (
            f"{ANNOTATIONS}.{AUTOSCALING}activation-scale",
            f"{activation} is outside min-scale and max-scale",
        )


def metric_suits_the_autoscaler(service: dict) -> Mistakes:
    annotations = _annotations(service)
    metric = annotations.get(f"{AUTOSCALING}metric")
    is_kpa = annotations.get(f"{AUTOSCALING}class", "kpa").startswith("kpa")
    if metric is not None and is_kpa and metric not in ("concurrency", "rps"):
        yield (
            f"{ANNOTATIONS}.{AUTOSCALING}metric",
            f"{metric!r} is not 'concurrency' or 'rps'",
        )


def timeouts_nest(service: dict) -> Mistakes:
    revision = _revision(service)
    whole = revision.get("timeoutSeconds") or 300
    for part in ("responseStartTimeoutSeconds", "idleTimeoutSeconds"):
        if revision.get(part, 0) > whole:
            yield (
                f"{REVISION}.{part}",
                f"{revision[part]} is above timeoutSeconds, {whole}",
            )


def one_container_has_one_port(service: dict) -> Mistakes:
    containers = _revision(service)["containers"]
    num_ports = sum(len(container.get("ports", [])) for container in containers)
    if num_ports > 1 or (num_ports == 0 and len(containers) > 1):
        yield (
            f"{REVISION}.containers.ports",
            f"{num_ports} ports, Knative routes to one",
        )
    yield from _repeated(f"{REVISION}.containers", containers, "name")


def probes_ask_one_thing_of_the_port(service: dict) -> Mistakes:
    for path, container in _containers(service):
        port = (container.get("ports") or [{}])[0]
        for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
            probe = container.get(kind)
            # A readiness probe may ask nothing: then it connects.
            if probe and (kind != "readinessProbe" or any(key in probe for key in PROBE_HANDLERS)):
                yield from _exactly_one(f"{path}.{kind}", probe, PROBE_HANDLERS)
            for handler in ("httpGet", "tcpSocket"):
                asked = (probe or {}).get(handler, {}).get("port", "")
                if isinstance(asked, str) and asked not in (
                    "",
                    port.get("name") or "http",
                ):
                    yield (
                        f"{path}.{kind}.{handler}.port",
                        f"{asked!r} is not the container's port",
                    )


def readiness_without_a_period_is_asked_until_it_succeeds(service: dict) -> Mistakes:
    for path, container in _containers(service):
        probe = container.get("readinessProbe", {})
        for field in ("failureThreshold", "timeoutSeconds"):
            if probe.get(field) and not probe.get("periodSeconds"):
                yield (
                    f"{path}.readinessProbe.{field}",
                    "needs a periodSeconds above zero",
                )


def requests_fit_in_limits(service: dict) -> Mistakes:
    for path, container in _containers(service):
        resources = container.get("resources", {})
        limits = resources.get("limits", {})
        for name, request in resources.get("requests", {}).items():
            if name in limits and quantity(request) > quantity(limits[name]):
                yield (
                    f"{path}.resources.requests.{name}",
                    f"{request} is above {limits[name]}",
                )


def volumes_have_one_kind_and_are_mounted(service: dict) -> Mistakes:
    volumes = _revision(service).get("volumes", [])
    names = {volume["name"] for volume in volumes}
    mounted = set()
    for path, container in _containers(service):
        mounts = container.get("volumeMounts", [])
        mounted |= {mount["name"] for mount in mounts}
        yield from _repeated(f"{path}.volumeMounts", mounts, "mountPath")
        for mount in mounts:
            if mount["name"] not in names:
                yield f"{path}.volumeMounts.name", f"{mount['name']!r} is no volume"
            where = mount["mountPath"]
            if not where.startswith("/") or normpath(where) in RESERVED_MOUNTS:
                yield (
                    f"{path}.volumeMounts.mountPath",
                    f"{where!r} is reserved or not absolute",
                )
    yield from _repeated(f"{REVISION}.volumes", volumes, "name")
    for index, volume in enumerate(volumes):
        yield from _exactly_one(f"{REVISION}.volumes.{index}", volume, VOLUME_KINDS)
        if volume["name"] not in mounted:
            yield (
                f"{REVISION}.volumes.{index}.name",
                f"{volume['name']!r} is mounted nowhere",
            )


def traffic_goes_somewhere_once(service: dict) -> Mistakes:
    traffic = service["spec"].get("traffic")
    if traffic is None:
        return
    total = sum(target.get("percent", 0) for target in traffic)
    if total != 100:
        yield "spec.traffic", f"percentages sum to {total}, not 100"
    yield from _repeated("spec.traffic", traffic, "tag")
    for index, target in enumerate(traffic):
        pinned = bool(target.get("revisionName"))
        if target.get("latestRevision", not pinned) == pinned:
            yield (
                f"spec.traffic.{index}.latestRevision",
                "must be the opposite of revisionName",
            )


RULES = [
    service_metadata_has_no_word_of_the_revision,
    revision_name_starts_with_the_service,
    scale_bounds_agree,
    metric_suits_the_autoscaler,
    timeouts_nest,
    one_container_has_one_port,
    probes_ask_one_thing_of_the_port,
    readiness_without_a_period_is_asked_until_it_succeeds,
    requests_fit_in_limits,
    volumes_have_one_kind_and_are_mounted,
    traffic_goes_somewhere_once,
]
