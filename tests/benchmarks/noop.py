"""A FastAPI endpoint that does nothing: it validates the same rows with pydantic and answers a constant.

    python tests/benchmarks/noop.py BUNDLE

Prints its address like `serve`. It validates less than the project's API, and does not predict, log or count anything.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI
from pydantic import Field, create_model

from flywheel_ml.core.contract import Column, Contract
from flywheel_ml.serving.process.sockets import announce, listen
from flywheel_ml.serving.schema.documents import Answer, Answers

TYPES: dict[str, Any] = {"integer": int, "string": str, "boolean": bool, "datetime": datetime}


def build_app(contract: Contract) -> FastAPI:
    """Build the application that the FastAPI tutorial would build for a contract."""
    make: Any = create_model
    instance = make("Instance", **{f"column_{at}": _field(column) for at, column in enumerate(contract.inputs)})
    request = make("PredictRequest", instances=(list[instance], Field(min_length=1)))  # type: ignore[valid-type]
    made = FastAPI()
    constant = Answers(
        predictions=[Answer(id="0" * 32, prediction=True, probabilities={"false": 0.25, "true": 0.75})],
        model_version="1",
        variant="champion",
        degraded=False,
    )

    async def predict(body: Any) -> Answers:
        return constant

    predict.__annotations__["body"] = request
    made.post("/predict")(predict)
    return made


def _field(column: Column) -> tuple[Any, Any]:
    typed = TYPES.get(column.type, Annotated[float, Field(ge=column.limits[0], le=column.limits[1])])
    if column.categories and not column.max_unknown_share:
        typed = Literal[column.categories]
    # A column name may not be a valid attribute name.
    return (typed | None, Field(None, alias=column.name)) if column.nullable else (typed, Field(alias=column.name))


if __name__ == "__main__":
    config = uvicorn.Config(
        build_app(Contract.load(Path(sys.argv[1]) / "contract.yaml")),
        http="httptools",
        access_log=False,
        log_level="warning",
    )
    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        announce(listener)
        uvicorn.Server(config).run(sockets=[listener])
