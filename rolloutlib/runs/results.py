"""What a sweep leaves on the disk: a folder for each run, and one table of all of them.

The folder of a run is named by a hash of all that decides its numbers. It holds the executed
notebook, whatever the notebook wrote, and `metrics.json`, which is written last and in one step:
a run is finished when that file is there, and not before.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

import rolloutlib
from rolloutlib.extras import needs
from rolloutlib.files.complete import complete_file, write_text
from rolloutlib.runs.notebook import MODEL_NAMES, Parameter, hash_of

with needs("notebooks"):
    from huggingface_hub import try_to_load_from_cache

METRICS = "metrics.json"
FAILURE = "failure.json"
COLUMNS = ("run", "notebook", "route", "seconds", "peak_memory_mb", "error")
PACKAGES = ("numpy", "torch", "transformers")
# Larger files, which are weights of real checkpoints, are identified by their size and date.
LARGEST_READ = 64 * 2**20


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
    return _read(folder / METRICS) is not None


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
    for left in [*folder.glob("*.part.*"), *folder.glob("*.failed.*"), *folder.glob(".*.part*")]:
        left.unlink(missing_ok=True)


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
    "parameters" and which "metrics". A value that is a list stands there as JSON.
    """
    read = [_read(folder / METRICS) or _read(folder / FAILURE) for folder in sorted(out.iterdir())]
    records = [record for record in read if record]
    parameters, metrics, packages = (
        list({name: None for record in records for name in record[kind]})
        for kind in ("parameters", "metrics", "versions")
    )
    columns = ["run", "notebook", "route", *parameters, *metrics]
    columns += ["seconds", "peak_memory_mb", *packages, "error"]
    columns = list(dict.fromkeys(columns))  # one notebook's metric may be another's parameter
    table = pd.DataFrame(map(_row, records), columns=columns).apply(_one_kind)
    table.attrs = {"parameters": parameters, "metrics": metrics}
    return table


def varied_parameters(table: pd.DataFrame) -> list[str]:
    """The parameters that differ between the runs of a table."""
    return [name for name in table.attrs["parameters"] if table[name].nunique(dropna=False) > 1]


def write_table(out: Path) -> pd.DataFrame:
    """Write `results.parquet` and `results.csv` of a sweep's folder, and return the table."""
    table = collect(out)
    with complete_file(out / "results.parquet") as part:
        table.to_parquet(part)
    with complete_file(out / "results.csv") as part:
        table.to_csv(part, index=False)
    return table


def _file_identity(file: Path) -> object:
    status = file.stat()
    if status.st_size > LARGEST_READ:
        return [status.st_size, status.st_mtime_ns]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(path: Path) -> dict | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _row(record: Mapping[str, object]) -> dict[str, object]:
    row = record | record["parameters"] | record["metrics"] | record["versions"]
    lists = {name: json.dumps(one) for name, one in row.items() if isinstance(one, list | dict)}
    return row | lists


def _one_kind(column: pd.Series) -> pd.Series:
    """Words for a column whose values are of several kinds: Parquet keeps one kind."""
    kinds = {type(value) for value in column.dropna()}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return column.map(str, na_action="ignore")
    return column
