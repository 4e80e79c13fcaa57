"""What `kubectl kustomize` makes of a folder of `infra/knative`."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

KNATIVE = Path(__file__).parents[2] / "infra/knative"
FOLDERS = [
    "base",
    *(f"overlays/{path.name}" for path in sorted((KNATIVE / "overlays").iterdir())),
]


@cache
def render(folder: str) -> list[dict]:
    """The objects of `folder`. Shared between callers: copy before changing one."""
    with TemporaryDirectory() as copy:
        tree = Path(shutil.copytree(KNATIVE, copy, dirs_exist_ok=True))
        if _kubectl_minor() < 21:
            for file in tree.rglob("kustomization.yaml"):
                _spell_for_kubectl_1_20(file)
        return list(yaml.safe_load_all(_kubectl("kustomize", str(tree / folder))))


def _kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@cache
def _kubectl_minor() -> int:
    version = json.loads(_kubectl("version", "--client", "--output=json"))
    return int(re.match(r"\d+", version["clientVersion"]["minor"]).group())


def _spell_for_kubectl_1_20(file: Path) -> None:
    """Debian 12 has kubectl 1.20, whose kustomize knows two of our fields by older names."""
    kustomization = yaml.safe_load(file.read_text())
    resources = kustomization.pop("resources")
    kustomization["bases"] = [path for path in resources if (file.parent / path).is_dir()]
    kustomization["resources"] = [path for path in resources if (file.parent / path).is_file()]
    kustomization["patchesJson6902"] = kustomization.pop("patches", [])
    file.write_text(yaml.safe_dump(kustomization))
