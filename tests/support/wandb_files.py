"""Reads the files that W&B writes offline: its log is that of LevelDB, with records of protobuf."""

import json
import pathlib
import struct
import time

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def records(path):
    """Yields the records of a `.wandb` file."""
    data, at, whole = path.read_bytes(), _HEADER, b""
    assert data[:4] == b":W&B"
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        part = data[at + _HEADER : at + _HEADER + length]
        if len(part) < length:
            return  # it is being written
        at += _HEADER + length
        whole = part if kind in (_FULL, _FIRST) else whole + part
        if kind in (_FULL, _LAST):
            yield wandb_internal_pb2.Record.FromString(whole)


def runs(folder, finished=True):
    """Returns the content of each offline run in `folder`, in the order in which they began.

    A process of W&B's own writes it. If it was told the end of a run, it may write a little later.
    """
    paths = sorted(pathlib.Path(folder).glob("wandb/offline-run-*/*.wandb"))
    until = time.monotonic() + 120
    while finished and not all(map(_is_whole, paths)):
        assert time.monotonic() < until, paths
        time.sleep(0.2)
    return [Run(path) for path in paths]


def _is_whole(path):
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))


class Run:
    """The content of one `.wandb` file.

    Attributes:
      id, project, name, config: of the run.
      history: rows of what was logged, name -> value; "_step" is W&B's.
      artifacts: path in an artifact -> local file, of each artifact.
    """

    def __init__(self, path):
        self.folder, self.history, self.artifacts = path.parent, [], []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
                self.id, self.project, self.name = run.run_id, run.project, run.display_name
                self.config = {item.key: json.loads(item.value_json) for item in run.config.update}
            elif kind == "history":
                self.history.append(
                    {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
            elif kind == "artifact":
                contents = record.artifact.manifest.contents
                self.artifacts.append({one.path: pathlib.Path(one.local_path) for one in contents})

    def metrics(self):
        """Returns the rows of metrics, without what W&B adds."""
        return [
            {name: value for name, value in row.items() if not name.startswith("_")}
            for row in self.history
            if not any(name.startswith("rollouts/") for name in row)
        ]

    def tables(self):
        """Returns (step, columns, rows) of each table; an image is the path of its file."""
        steps = [row["step"] for row in self.history if "rollouts/path" in row]
        found = []
        for step, files in zip(steps, self.artifacts, strict=True):
            table = json.loads(files["rollouts.table.json"].read_text())
            rows = [
                [files[cell["path"]] if isinstance(cell, dict) else cell for cell in row]
                for row in table["data"]
            ]
            found.append((step, table["columns"], rows))
        return found
