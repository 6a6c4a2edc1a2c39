"""The server does not import training libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flywheel_ml.testing.servers import ServingFolder
from library.helpers.project import PACKAGE
from library.helpers.protocol_clients import to_arrow_stream

TRAINING = {
    "dvc", "jinja2", "joblib", "matplotlib", "mlflow", "onnx", "pandas", "pandera", "polars", "prefect", "pyarrow",
    "scipy", "skl2onnx", "sklearn",
}  # fmt: skip

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
import httpx
import flywheel_ml.cli.verbs
from flywheel_ml.core.project import import_reference
from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.observability.metrics import Metrics

async def main():
    project = import_reference(sys.argv[4])
    settings = Settings(_env_file=None, serving_folder=Path(sys.argv[1]), prediction_log=sys.argv[2])
    app = import_reference(project.app)(settings, Metrics(), None, project.features)
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        description = (await client.get("/openapi.json")).json()
        body = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        answer = await client.post("/predict", json=body["examples"][0])
        id = answer.json()["predictions"][0]["id"]
        labelled = await client.post("/feedback", json={"labels": [{"id": id, "label": True}]})
        explained = await client.post("/explain", json=body["examples"][0])
        before = loaded()
        kind = {"Content-Type": "application/vnd.apache.arrow.stream"}
        columns = await client.post("/predict", content=bytes.fromhex(sys.argv[3]), headers=kind)
        return [one.status_code for one in (answer, labelled, explained, columns)], before, loaded()

def loaded():
    return sorted({name.partition(".")[0] for name in sys.modules})

print(json.dumps(asyncio.run(main())))
"""


def test_serving_process_loads_no_training_libraries(
    folder: ServingFolder, tmp_path: Path, instances: list[dict[str, Any]]
) -> None:
    folder.roll_out("1")
    command = [sys.executable, "-c", SCRIPT, str(folder.path), str(tmp_path / "log")]
    command += [to_arrow_stream(instances[:5]).hex(), f"{PACKAGE}.project:PROJECT"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    statuses, before, after = json.loads(result.stdout)
    assert statuses == [200, 200, 200, 200]
    assert TRAINING.isdisjoint(before)
    assert "requests" not in after  # What sends traces needs it; no collector is named.
    assert TRAINING & set(after) == {"pyarrow"}
