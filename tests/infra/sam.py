"""What CloudFormation would say of a SAM template: translated offline, the result linted.

Linting the SAM template itself is not enough: cfn-lint takes any value of a SAM resource.
"""

import copy
import json
import os
from pathlib import Path

from cfnlint.api import lint
from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

TEMPLATE = Path(__file__).parents[2] / "infra/lambda/template.yaml"
# Offline there is no bucket that `sam deploy` could have put the zip into.
UPLOADED = "s3://bucket/bootstrap.zip"
# The translator asks for a region, whichever.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")


def load() -> dict:
    """Our template, intrinsic functions written out."""
    return yaml_parse(TEMPLATE.read_text())


def mistakes(template: dict) -> list[str]:
    """Every reason to refuse `template`, as "path: reason"."""
    try:
        translated = translate(template)
    except InvalidDocumentException as refusal:
        return [f"{type(cause).__name__}: {cause.message}" for cause in refusal.causes]
    matches = lint(json.dumps(translated))
    return [f"{'.'.join(map(str, match.path))}: {match.message}" for match in matches]


def translate(template: dict) -> dict:
    """The CloudFormation template that AWS would make of `template`."""
    template = copy.deepcopy(template)
    for resource in template["Resources"].values():
        if "CodeUri" in resource.get("Properties", {}):
            resource["Properties"]["CodeUri"] = UPLOADED
    return transform(template, {}, _NoManagedPolicies())


class _NoManagedPolicies:
    """Stands for the loader that asks AWS for the ARNs of managed policies."""

    def load(self) -> dict[str, str]:
        return {}
