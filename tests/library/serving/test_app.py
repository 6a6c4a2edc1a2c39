"""The application with routes of a project."""

from pathlib import Path

from flywheel_ml.core.settings import Settings
from flywheel_ml.serving.app import create_app
from flywheel_ml.testing.servers import ServingFolder
from library.helpers.servers import InProcess


def test_metrics_distinguish_routes_of_the_project(folder: ServingFolder, tmp_path: Path) -> None:
    folder.roll_out("1")
    app = create_app(Settings(_env_file=None, serving_folder=folder.path, prediction_log=str(tmp_path / "log")))
    app.get("/threshold/{name}")(lambda name: {name: 0.5})
    with InProcess(app) as caller:
        assert caller.request("GET", "/threshold/late").json() == {"late": 0.5}
        assert caller.request("GET", "/nothing").status_code == 404
        counted = caller.request("GET", "/metrics").text
    assert 'http_requests_total{method="GET",route="/threshold/{name}",status="200"} 1.0' in counted
    assert 'http_requests_total{method="GET",route="other",status="404"} 1.0' in counted
