"""The fields of a Knative Service and the range of each: the CRD and the webhook together.

A field behind a feature flag that is off by default (`nodeSelector`, `hostPath`, …) is none here.
"""

import re
from collections.abc import Callable
from decimal import Decimal

from jsonschema import FormatChecker

AUTOSCALING = "autoscaling.knative.dev/"
RESERVED_ENV = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"]
# Ports of queue-proxy and its profiler.
RESERVED_PORTS = [8008, 8012, 8013, 8022, 9090, 9091]

IMAGE = re.compile(
    r"([a-z0-9.-]+(:\d+)?/)?[a-z0-9_./-]{2,255}(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?", re.ASCII)
DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
SUFFIXES = {
    "n": -9,
    "u": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}

FORMATS = FormatChecker(formats=())


def _format(name: str, accepts: Callable[[str], bool]) -> dict:
    """A schema for text that `accepts` takes; a refusal reads "… is not a 'name'"."""

    def check(value: object) -> bool:
        try:
            return not isinstance(value, str) or bool(accepts(value))
        except (ValueError, ArithmeticError):
            return False

    FORMATS.checks(name)(check)
    return {"type": "string", "format": name}


def seconds(duration: str) -> float:
    """A duration as Go writes it, such as `1m30s`."""
    if not re.fullmatch(f"({DURATION.pattern})+", duration):
        raise ValueError(duration)
    return sum(float(number) * SECONDS[unit] for number, unit in DURATION.findall(duration))


def quantity(value: str | float) -> Decimal:
    """A Kubernetes quantity, such as `500m` or `1Gi`, as a number."""
    matched = QUANTITY.fullmatch(str(value))
    if not matched:
        raise ValueError(value)
    number, suffix = Decimal(matched[1]), matched[2] or ""
    if suffix.endswith("i"):
        return number * 1024 ** ("KMGTPE".index(suffix[0]) + 1)
    if suffix[:1] in ("e", "E") and suffix[1:]:
        return number.scaleb(int(suffix[1:]))
    return number.scaleb(SUFFIXES[suffix])


def _number(least: float, most: float = float("inf")) -> dict:
    return _format(f"number from {least:g} to {most:g}", lambda text: least <= float(text) <= most)


def _count(least: int) -> dict:
    return _format(
        f"whole number from {least} to 2^31 - 1",
        lambda text: bool(re.fullmatch(r"[+-]?\d+", text)) and least <= int(text) < 2**31,
    )


def _duration(least: float, *, whole: bool) -> dict:
    return _format(
        f"duration from {least:g}s to 1h{', in whole seconds' if whole else ''}",
        lambda text: least <= seconds(text) <= 3600 and not (whole and seconds(text) % 1),
    )


STRING = {"type": "string"}
BOOLEAN = {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
LABEL = _format("DNS label that starts with a letter", DNS_LABEL.fullmatch)
PORT_OR_NAME = {"type": ["integer", "string"]}
ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def _integer(least: int, most: int = 2**31 - 1) -> dict:
    return {"type": "integer", "minimum": least, "maximum": most}


def _list(items: dict, least: int = 0) -> dict:
    return {"type": "array", "items": items, "minItems": least}


def _object(*required: str, **properties: dict) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _probe(success_threshold: dict) -> dict:
    return _object(
        initialDelaySeconds=_integer(0),
        periodSeconds=_integer(0),
        timeoutSeconds=_integer(0),
        failureThreshold=_integer(0),
        successThreshold=success_threshold,
        httpGet=_object(
            host=STRING,
            path=STRING,
            port=PORT_OR_NAME,
            scheme={"enum": ["HTTP", "HTTPS"]},
            httpHeaders=_list(_object("name", "value", name=STRING, value=STRING)),
        ),
        tcpSocket=_object(host=STRING, port=PORT_OR_NAME),
        exec=_object(command=_list(STRING)),
        grpc=_object(port=_integer(0, 65535), service=STRING),
    )


def _reference(**properties: dict) -> dict:
    return _object(name=STRING, optional=BOOLEAN, **properties)


RESOURCES = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            {"type": "number", "minimum": 0},
            _format("quantity", lambda text: quantity(text) >= 0),
        ]
    },
}

CONTAINER = _object(
    "image",
    name={**LABEL, "not": {"const": "queue-proxy"}},
    image=_format("image reference", IMAGE.fullmatch),
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=_list(STRING),
    args=_list(STRING),
    workingDir=STRING,
    ports=_list(
        _object(
            containerPort={**_integer(0, 65535), "not": {"enum": RESERVED_PORTS}},
            name={"enum": ["h2c", "http1", ""]},
            protocol={"const": "TCP"},
        )
    ),
    env=_list(
        _object(
            "name",
            name={"type": "string", "minLength": 1, "not": {"enum": RESERVED_ENV}},
            value=STRING,
            valueFrom=_object(
                configMapKeyRef=_reference(key=STRING),
                secretKeyRef=_reference(key=STRING),
            ),
        )
    ),
    envFrom=_list(_object(prefix=STRING, configMapRef=_reference(), secretRef=_reference())),
    readinessProbe=_probe(success_threshold=_integer(0)),
    # Kubernetes lets these two succeed at the first success only.
    livenessProbe=_probe(success_threshold=_integer(1, 1)),
    startupProbe=_probe(success_threshold=_integer(1, 1)),
    resources=_object(requests=RESOURCES, limits=RESOURCES),
    securityContext=_object(
        allowPrivilegeEscalation=BOOLEAN,
        capabilities=_object(drop=_list(STRING)),
        privileged={"const": False},
        readOnlyRootFilesystem=BOOLEAN,
        runAsGroup=ID,
        runAsNonRoot=BOOLEAN,
        runAsUser=ID,
        seccompProfile=_object(
            "type",
            type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]},
            localhostProfile=STRING,
        ),
    ),
    terminationMessagePath=STRING,
    terminationMessagePolicy={"enum": ["File", "FallbackToLogsOnError"]},
    volumeMounts=_list(
        _object(
            "name",
            "mountPath",
            name=STRING,
            mountPath=STRING,
            readOnly=BOOLEAN,
            subPath=STRING,
        )
    ),
)

ITEMS = _list(_object("key", "path", key=STRING, path=STRING, mode=_integer(0, 0o777)))
VOLUME = _object(
    "name",
    name=LABEL,
    secret=_object(secretName=STRING, optional=BOOLEAN, defaultMode=ID, items=ITEMS),
    configMap=_reference(defaultMode=ID, items=ITEMS),
    projected=_object(
        defaultMode=ID,
        sources=_list(
            _object(
                secret=_reference(items=ITEMS),
                configMap=_reference(items=ITEMS),
                serviceAccountToken=_object(
                    "path",
                    path=STRING,
                    audience=STRING,
                    expirationSeconds=_integer(600),
                ),
                downwardAPI=_object(items=_list({"type": "object"})),
            )
        ),
    ),
    emptyDir=_object(medium={"enum": ["", "Memory"]}, sizeLimit=RESOURCES["additionalProperties"]),
)

ANNOTATIONS = {
    "type": "object",
    "properties": {
        AUTOSCALING + name: schema
        for name, schema in {
            "class": {
                "enum": ["kpa.autoscaling.knative.dev", "hpa.autoscaling.knative.dev"],
            },
            "metric": {"type": "string", "minLength": 1},
            "target": _number(0.01),
            "target-utilization-percentage": _number(1, 100),
            "target-burst-capacity": _format(
                "number of at least 0, or -1",
                lambda text: float(text) >= 0 or float(text) == -1,
            ),
            "min-scale": _count(0),
            "max-scale": _count(0),
            "initial-scale": _count(1),
            "activation-scale": _count(2),
            "scale-down-delay": _duration(0, whole=True),
            "scale-to-zero-pod-retention-period": _duration(0, whole=False),
            "window": _duration(6, whole=True),
            "panic-window-percentage": _number(1, 100),
            "panic-threshold-percentage": _number(110, 1000),
        }.items()
    },
    "patternProperties": {f"^(?!{re.escape(AUTOSCALING)})": STRING},
    "additionalProperties": False,
}

REVISION = _object(
    "containers",
    automountServiceAccountToken={"const": False},
    containerConcurrency=_integer(0, 1000),
    containers=_list(CONTAINER, least=1),
    enableServiceLinks=BOOLEAN,
    idleTimeoutSeconds=_integer(0, 600),
    imagePullSecrets=_list(_object(name=STRING)),
    responseStartTimeoutSeconds=_integer(0, 600),
    serviceAccountName=STRING,
    timeoutSeconds=_integer(0, 600),
    volumes=_list(VOLUME),
)

SCHEMA = _object(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "serving.knative.dev/v1"},
    kind={"const": "Service"},
    metadata=_object("name", name=LABEL, namespace=LABEL, labels=STRINGS, annotations=STRINGS),
    spec=_object(
        "template",
        template=_object(
            "spec",
            metadata=_object(name=LABEL, labels=STRINGS, annotations=ANNOTATIONS),
            spec=REVISION,
        ),
        traffic=_list(
            _object(
                percent=_integer(0, 100),
                latestRevision=BOOLEAN,
                revisionName=STRING,
                tag=LABEL,
            )
        ),
    ),
)
