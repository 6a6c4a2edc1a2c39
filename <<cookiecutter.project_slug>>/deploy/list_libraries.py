"""Lists the libraries of the server's image: build/sbom.json (CycloneDX) and build/licences.csv. `make audit` runs it.

Argument: the uv command. It installs the libraries of uv.lock into build/image-env, as the image does.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT, SBOM, LICENCES = Path("build/image-env"), Path("build/sbom.json"), Path("build/licences.csv")
TOOL = ["tool", "run", "--exclude-newer", "2026-11-01", "--from", "cyclonedx-bom==7.5.0", "cyclonedx-py"]


def main(uv: str) -> None:
    """Write both files and print where they are."""
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(ENVIRONMENT)}
    install = [uv, "sync", "--quiet", "--locked", "--no-default-groups", "--no-install-project"]
    subprocess.run(install, env=environment, check=True)
    describe = ["environment", str(ENVIRONMENT / "bin" / "python"), "--output-reproducible", "--output-file", str(SBOM)]
    subprocess.run([uv, *TOOL, *describe], check=True, capture_output=True)
    components = json.loads(SBOM.read_text(encoding="utf-8"))["components"]
    rows = sorted((found["name"], found["version"], list_licences(found)) for found in components)
    with LICENCES.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("library", "version", "licence"), *rows])
    unknown = [name for name, _, licence in rows if not licence]
    print(f"{len(rows)} libraries: {SBOM}, {LICENCES}", *(f"; {name} declares no licence" for name in unknown), sep="")


def list_licences(component: dict[str, list[dict[str, dict[str, str] | str]]]) -> str:
    """Return the licences of a component, as SPDX ids or names, joined by `and`."""
    names = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        text = entry.get("expression") or (isinstance(licence, dict) and (licence.get("id") or licence.get("name")))
        names += [str(text)] if text else []
    return " and ".join(dict.fromkeys(names))


if __name__ == "__main__":
    main(sys.argv[1])
