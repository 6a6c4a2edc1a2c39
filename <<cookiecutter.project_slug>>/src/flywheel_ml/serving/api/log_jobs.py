"""Jobs on the prediction log over HTTP: prune, export and erase, each in a process of its own."""

import asyncio
import threading
from datetime import timedelta
from typing import Any, Literal

from fastapi import APIRouter, Depends, FastAPI
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from flywheel_ml.core.settings import Settings
from flywheel_ml.prediction_log.retention import jobs
from flywheel_ml.prediction_log.retention.erase import has_interrupted
from flywheel_ml.prediction_log.retention.export import parse_span
from flywheel_ml.prediction_log.retention.jobs import Job
from flywheel_ml.prediction_log.retention.log import Log
from flywheel_ml.prediction_log.retention.prune import read_limits
from flywheel_ml.serving.api.openapi import ANY_ERRORS, BODY_ERRORS, KEYS, describe_problems
from flywheel_ml.serving.errors.problems import Problem
from flywheel_ml.serving.http.admission import JSON
from flywheel_ml.serving.http.lifecycle import RequestLifecycle
from flywheel_ml.utils.errors import ConfigError

PREFIX = "/log"
PROFILES = "flywheel_ml.monitoring.sources.profile_store:count_unprofiled"
"""`module:function` of the `Profiles` that a prune asks. A server cannot build profiles, only count what lacks one."""
OVERLOAD = {503: "Too many requests are in progress; try again after `Retry-After` seconds."}
MAX_KEY = 1000


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PruneRequest(_Request):
    """Rows to delete: older than `age` (`90d`), or the oldest down to `size` (`10GB`). The default is in the settings.

    `force` also deletes rows of hours without a profile; `dry_run` only counts.
    """

    age: str = ""
    size: str = ""
    force: bool = False
    dry_run: bool = False


class ExportRequest(_Request):
    """The span to export, since inclusive and until exclusive; the folder is on the server's machine."""

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class EraseRequest(_Request):
    """The entity to erase: the value of the contract's id column, as text."""

    key: str = Field(min_length=1, max_length=MAX_KEY)


REQUESTS: dict[str, type[_Request]] = {"prune": PruneRequest, "export": ExportRequest, "erase": EraseRequest}


class JobState(BaseModel):
    """The state of a job, with its result or error when it has ended."""

    job: str
    kind: str
    state: Literal["running", "succeeded", "failed"]
    result: Any = None
    error: str | None = None


class LogJobs:
    """Starts jobs and reports their states; all workers see the same ones.

    Args:
        settings: the log, its exports and limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = Log.of_settings(settings)

    def resume(self) -> None:
        """Start a job that completes interrupted erasures, if there are any."""
        if has_interrupted(self._log):
            self._start(self._new_job("resume"))

    def start(self, kind: str, body: bytes) -> JobState:
        """Start a job; blocking.

        Raises:
            Problem: 422 for the body.
        """
        try:
            job = self._build_job(REQUESTS[kind].model_validate_json(body or b"{}"))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(str(part) for part in fault["loc"])
            raise Problem(422, "invalid-request", f"{name or 'the body'}: {fault['msg']}") from None
        except ConfigError as error:
            raise Problem(422, "invalid-request", str(error)) from None
        self._start(job)
        return JobState(job=job.id, kind=kind, state="running")

    def find(self, name: str) -> JobState:
        """Return the state of a job.

        Raises:
            Problem: 404 if there is no such job.
        """
        state = jobs.read_state(self._log, name)
        if state is None:
            raise Problem(404, "unknown-job", "there is no job with this id; states are kept for a week")
        return JobState(job=name, **state)

    def _start(self, job: Job) -> None:
        process = jobs.start(self._log, job)
        # Reaps the process when it ends.
        threading.Thread(target=process.wait, name="log-job", daemon=True).start()

    def _new_job(self, kind: str, **options: Any) -> Job:
        log = self._log
        places = {"target": log.target, "spool": str(log.spool), "exports": str(log.exports)}
        folder = str(self._settings.serving_folder)
        return Job.model_validate({"kind": kind, **places, "serving_folder": folder, **options})

    def _build_job(self, request: _Request) -> Job:
        if isinstance(request, PruneRequest):
            limits = read_limits(self._settings, request.age, request.size)
            return self._new_job(
                "prune",
                age_hours=limits.age and limits.age // timedelta(hours=1),
                size=limits.size,
                force=request.force,
                dry_run=request.dry_run,
                profiles=PROFILES,
            )
        if isinstance(request, ExportRequest):
            return self._new_job("export", span=parse_span(request.since, request.until))
        assert isinstance(request, EraseRequest)
        return self._new_job("erase", key=request.key)


def add_log_routes(app: FastAPI, lifecycle: RequestLifecycle, log_jobs: LogJobs) -> frozenset[str]:
    """Add the routes to the app and return their paths; unlike predictions, they need no model."""
    router = APIRouter(prefix=PREFIX, dependencies=[*KEYS, Depends(lifecycle.guard.require)])
    for kind in REQUESTS:
        _add_job_route(router, kind, lifecycle, log_jobs)

    @router.get(
        "/jobs/{job}",
        summary="The state of a job on the prediction log",
        responses=describe_problems(ANY_ERRORS | {404: "There is no such job."}),
    )
    async def job_state(job: str) -> JobState:
        return await asyncio.to_thread(log_jobs.find, job)

    app.include_router(router)
    return frozenset({PREFIX + "/jobs/{job}", *(f"{PREFIX}/{kind}" for kind in REQUESTS)})


def _add_job_route(router: APIRouter, kind: str, lifecycle: RequestLifecycle, log_jobs: LogJobs) -> None:
    # The body is read here, within the limits of the server, and not by FastAPI.
    @router.post(
        f"/{kind}",
        status_code=202,
        summary=f"Start a job on the prediction log: {kind}",
        responses=describe_problems(ANY_ERRORS | BODY_ERRORS | OVERLOAD),
        openapi_extra={"requestBody": {"content": {JSON: {"schema": REQUESTS[kind].model_json_schema()}}}},
    )
    async def start(request: Request, response: Response) -> JobState:
        body = await lifecycle.admission.read_body(request.scope, request.receive)
        with lifecycle.admit():
            started = await asyncio.to_thread(log_jobs.start, kind, body)
        response.headers["Location"] = f"{PREFIX}/jobs/{started.job}"
        return started
