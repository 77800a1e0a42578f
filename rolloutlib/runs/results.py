"""What a sweep leaves on the disk: a folder for each run, and one table of all of them.

The folder of a run is named by a hash of all that decides its numbers. It holds the executed
notebook, whatever the notebook wrote, and `metrics.json`, which is written last and in one step:
a run is finished when that file is there, and not before.
"""

import csv
import hashlib
import json
import platform
import shutil
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

import rolloutlib
from rolloutlib.extras import needs
from rolloutlib.files.complete import PART, complete_file, write_text
from rolloutlib.runs.metrics import plain_metrics
from rolloutlib.runs.notebook import MODEL_NAMES, Parameter, hash_of

with needs("notebooks"):
    from huggingface_hub import try_to_load_from_cache
    from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

METRICS = "metrics.json"
FAILURE = "failure.json"
COLUMNS = ("run", "notebook", "route", "seconds", "peak_memory_mb", "error")
PACKAGES = ("numpy", "torch", "transformers")
# Larger files, which are weights of real checkpoints, are identified by their size and date.
LARGEST_READ = 64 * 2**20
LARGEST_RECORD = 16 * 2**20
# What a spreadsheet takes for a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

# A name in a folder: of a run, or of a notebook without its ending.
FileName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}$")]
FILE_NAME = TypeAdapter(FileName)


class Record(BaseModel):
    """What is kept of a run, as its folder holds it."""

    run: FileName
    notebook: FileName
    route: str
    parameters: dict[str, Any]
    metrics: Annotated[dict[str, Any], AfterValidator(plain_metrics)]
    versions: dict[str, str]
    seconds: float
    peak_memory_mb: float | None
    error: str


def run_key(
    digest: str,
    route: str,
    declared: Mapping[str, Parameter],
    values: Mapping[str, object],
    identify: Callable[[str, str], str],
) -> str:
    """The name of a run: 16 hexadecimal digits that depend on all that decides its numbers.

    A file or checkpoint counts by its content and not by its place, as `identify` says: `identity`,
    or the same with a memory where many runs read the same files.
    """
    kept = dict(values)
    for name, value in values.items():
        if value and (declared[name].names_a_file or name in MODEL_NAMES):
            kept[name] = identify(str(value), str(values.get("revision", "main")))
    return hash_of([digest, route, rolloutlib.__version__, kept])[:16]


def identity(name: str, revision: str = "main") -> str:
    """A hash that changes when a file, any file of a folder, or a checkpoint's release does.

    Files up to 64 MB count by their content, larger ones by their size and date. What is not a
    file is a pip package, which counts by its version, or a checkpoint from the hub, by the commit
    that `revision` stands for in the cache here.
    """
    path = Path(name)
    if path.is_file():
        return hash_of(_file_identity(path))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return hash_of([[one.relative_to(path).as_posix(), _file_identity(one)] for one in files])
    try:
        release = version(name)
    except PackageNotFoundError:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        release = Path(cached).parent.name if isinstance(cached, str) else ""
    return hash_of([name, release])


def is_finished(folder: Path) -> bool:
    """Whether a run's folder holds its result; one that cannot be read does not count."""
    with suppress(OSError, ValueError):
        return bool(_read(folder / METRICS))
    return False


def write_result(folder: Path, record: Mapping[str, object]) -> None:
    """Declare a run finished, and remove what earlier attempts left in its folder.

    Raises ValueError where a metric has the name of another column of the table.
    """
    taken = own_columns() | record["parameters"].keys()
    clashes = ", ".join(sorted(taken & record["metrics"].keys()))
    if clashes:
        raise ValueError(f"{clashes}: a metric must not have another column's name")
    write_text(folder / METRICS, json.dumps(record, indent=2) + "\n")
    (folder / FAILURE).unlink(missing_ok=True)
    for left in [*folder.glob("*.part.*"), *folder.glob("*.failed.*")]:
        left.unlink(missing_ok=True)
    for left in folder.glob(f".*{PART}"):
        shutil.rmtree(left, ignore_errors=True)


def write_failure(folder: Path, record: Mapping[str, object]) -> None:
    """Keep why a run failed, beside its notebook with the cells that it executed."""
    write_text(folder / FAILURE, json.dumps(record, indent=2) + "\n")


def write_traceback(folder: Path, text: str) -> None:
    """Keep where a run without a notebook failed."""
    write_text(folder / "traceback.failed.txt", text)


def own_columns() -> set[str]:
    """The columns of the table that are neither parameters nor metrics."""
    return {*COLUMNS, *versions()}


def versions() -> dict[str, str]:
    """The versions of Python and the packages that decide the numbers."""
    found = {"rolloutlib": rolloutlib.__version__, "python": platform.python_version()}
    return found | {name: version(name) for name in PACKAGES}


def collect(out: Path) -> pd.DataFrame:
    """One tidy table of all runs in a sweep's folder, a row for each.

    Columns: run, notebook, route, the parameters, the metrics, seconds, peak_memory_mb, the
    versions, and error, which is empty where the run finished. `attrs` says which columns are
    "parameters" and which "metrics". A value that is a list stands there as JSON. A record that is
    not one of a run in its folder is left out, with a warning.
    """
    records = [record for folder in sorted(out.iterdir()) for record in _records(folder)]
    parameters, metrics, packages = (
        list({name: None for record in records for name in record[kind]})
        for kind in ("parameters", "metrics", "versions")
    )
    columns = ["run", "notebook", "route", *parameters, *metrics]
    columns += ["seconds", "peak_memory_mb", *packages, "error"]
    columns = list(dict.fromkeys(columns))  # one notebook's metric may be another's parameter
    table = pd.DataFrame(map(_row, records), columns=columns, dtype=object).apply(_one_kind)
    table.attrs = {"parameters": parameters, "metrics": metrics}
    return table


def varied_parameters(table: pd.DataFrame) -> list[str]:
    """The parameters that differ between the runs of a table."""
    return [name for name in table.attrs["parameters"] if table[name].nunique(dropna=False) > 1]


def read_table(folder: Path) -> pd.DataFrame:
    """The table that a sweep left in its folder, perhaps somebody else's.

    A row that names no file inside the folder is left out, with a warning. Raises ValueError for a
    file that is no such table.
    """
    path = folder / "results.parquet"
    table = pd.read_parquet(path)
    named = {name for kind in ("parameters", "metrics") for name in table.attrs.get(kind, [None])}
    missing = {*COLUMNS, *named} - {*table.columns}
    if missing:
        raise ValueError(f"{path}: expected a sweep's table, got one without {missing}")
    good = pd.Series(
        [_is_file_name(one.run) and _is_file_name(one.notebook) for one in table.itertuples()],
        table.index,
        bool,
    )
    if not good.all():
        warnings.warn(f"{path}: {(~good).sum()} rows that name no run are left out", stacklevel=2)
    return table[good]


def write_table(out: Path) -> pd.DataFrame:
    """Write `results.parquet` and `results.csv` of a sweep's folder, and return the table.

    In the CSV, a text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    return write_both(collect(out), out / "results")


def write_both(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write a table as `.parquet` and `.csv`, in which nothing is a formula, and return it."""
    with complete_file(path.with_suffix(".parquet")) as part:
        table.to_parquet(part)
    with complete_file(path.with_suffix(".csv")) as part:
        text = table.rename(columns=_as_text).map(_as_text)
        text.to_csv(part, index=False, quoting=csv.QUOTE_NONNUMERIC)
    return table


def _file_identity(file: Path) -> object:
    status = file.stat()
    if status.st_size > LARGEST_READ:
        return [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """What a folder holds of its run: the result, else the failure, else nothing."""
    for name in (METRICS, FAILURE):
        try:
            record = _read(folder / name)
        except (OSError, ValueError) as problem:
            reason = textwrap.shorten(str(problem), 200)
            warnings.warn(f"{folder / name}: left out of the table: {reason}", stacklevel=3)
        else:
            if record:
                yield record
                return


def _read(path: Path) -> dict[str, Any] | None:
    """A run's record; None where there is none. Raises ValueError where it is something else."""
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_RECORD:
        raise ValueError(f"expected at most {LARGEST_RECORD} bytes, got {path.stat().st_size}")
    record = Record.model_validate_json(path.read_bytes(), strict=True).model_dump()
    if record["run"] != path.parent.name:
        raise ValueError(f"expected the run {path.parent.name}, got {record['run']}")
    return record


def _is_file_name(name: object) -> bool:
    with suppress(ValueError):
        return bool(FILE_NAME.validate_python(name, strict=True))
    return False


def _row(record: Mapping[str, object]) -> dict[str, object]:
    row = record | record["parameters"] | record["metrics"] | record["versions"]
    lists = {name: json.dumps(one) for name, one in row.items() if isinstance(one, list | dict)}
    return row | lists


def _one_kind(column: pd.Series) -> pd.Series:
    """Parquet keeps one kind: words where values are of several, or NumPy would round them."""
    there = column.dropna()
    kinds = {type(value) for value in there}
    plain = pd.Series(column.tolist(), column.index)
    is_mixed = len(kinds) > 1 and not kinds <= {int, float}
    if is_mixed or (int in kinds and (plain.dtype == object or [*plain.dropna()] != [*there])):
        return column.map(str, na_action="ignore")
    return plain


def _as_text(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"
