"""Exports on their way to the hub: the card, a dry run, and a push to a server that records it."""

import base64
import contextlib
import dataclasses
import http.server
import json
import re
import threading
import types
import zlib

import huggingface_hub
import jax
import numpy as np
import pytest
import small_run
from etils import epath

from speciarl_jax.evaluation import metrics, predictions, provenance, results
from speciarl_jax.runtime import commands
from speciarl_jax.tools import convert, hub_push, model_card

REPO = "me/birds"
TRAIN = "python -m speciarl_jax.train --config=configs/quickstart.py --workdir=runs/birds"


@pytest.fixture(scope="module")
def adapters(run):
    """Step -> adapters that are far from the start."""
    return {
        step: jax.tree.map(lambda x, step=step: x + np.float32(0.1 * step), run.lora)
        for step in (2, 5)
    }


@pytest.fixture(scope="module")
def workdir(run, adapters, tmp_path_factory):
    """What a run leaves behind: two checkpoints, answers of the base and of the last of them."""
    folder = epath.Path(tmp_path_factory.mktemp("run"))
    small_run.leave_checkpoints(folder, run, adapters)
    store = predictions.Predictions(folder)
    for name, lora, right in (("base", run.lora, 3), ("trained", adapters[5], 7)):
        part = predictions.Part(name, "emoji", "base", predictions.GREEDY)
        known = {
            "policy": {"weights": "w"} | provenance.of_adapters(run, lora),
            "data": {"name": "emoji", "options": {"split": "held_out"}},
            "verifier": {"name": "taxonomy"},
            "seed": 1,
        }
        store.begin(part, known)
        line = {"image_id": 0, "label": "red fox", "label_id": "fox"}
        said = {"responses": ["<answer>fox</answer>"]}
        store.append(
            part,
            [
                {**line, **said, "index": i, "categories": ["specific" if i < right else "wrong"]}
                for i in range(8)
            ],
        )
    results.update(folder, store, metrics.configured_weights(run.config.evaluation.weights))
    rows = [{"program": "train", "command": TRAIN + " --config.x=redis://me:pw@host/0"}] * 2
    (folder / commands.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def convert_flags(**changes):
    names = "workdir step adapter model to out dtype base_name config push".split()
    given = dict.fromkeys(names) | {"best": False, "public": False, "dry_run": False} | changes
    return types.SimpleNamespace(**given)


def command(monkeypatch, **changes):
    monkeypatch.setattr(convert, "flags", types.SimpleNamespace(FLAGS=convert_flags(**changes)))
    convert.main(["convert"])


@pytest.fixture
def no_network(monkeypatch):
    """Whatever would contact the hub fails."""

    def refuse(*args, **options):
        raise AssertionError("the hub was contacted")

    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def card_of(folder):
    return huggingface_hub.ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def flat(text):
    return text.replace("\\", "")


def test_a_dry_run_writes_the_card_and_lists_the_files(
    workdir, no_network, monkeypatch, tmp_path, capsys
):
    out = tmp_path / "merged"
    command(monkeypatch, workdir=workdir, to="merged", out=out, push=REPO, dry_run=True)
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    said = capsys.readouterr().out
    for name in names:
        assert re.search(rf"^ *{(out / name).stat().st_size:,} {re.escape(name)}$", said, re.M)
    assert f"dry run: {len(names)} files would go to me/birds, private if it is new" in said
    card = card_of(out)
    assert card.data.library_name == "transformers" and card.data.tags == ["speciarl_jax"]
    # Nothing is known of them.
    assert card.data.base_model is None and card.data.license is None
    text = flat(card.text)
    for stated in (
        "| adapters | LoRA, rank 3, alpha 6 |",
        "| training data | emoji (split reinforcement, difficulty easy,",
        "policy loss grpo, reward best_prediction, 4 rollouts of each image",
        "| verifier | taxonomy |",
        "| base | emoji | base | 8 | 0.375 (",
        "| trained | emoji | base | 8 | 0.875 (",
        "| images | emoji, split held_out |",
        f"    {TRAIN} --config.x=redis://host/0\n",
    ):
        assert stated in text, stated
    assert text.count(TRAIN) == 1 and str(tmp_path) not in text


def test_a_card_states_no_figures_of_other_weights(workdir, no_network, monkeypatch, tmp_path):
    out = tmp_path / "adapter"
    flags = {"to": "peft", "out": out, "push": REPO, "dry_run": True, "base_name": "Qwen/Some-VL"}
    command(monkeypatch, workdir=workdir, step=2, **flags)
    card = card_of(out)
    assert card.data.base_model == "Qwen/Some-VL" and card.data.library_name == "peft"
    assert "None: no record" in card.text and "0.875" not in card.text
    assert 'from_pretrained("Qwen/Some-VL")' in card.text
    # An adapter without its run: nothing is known but what it is.
    again = tmp_path / "again"
    model = str(convert.read_run(workdir).base)
    command(monkeypatch, adapter=out, model=model, **flags | {"out": again})
    text = card_of(again).text
    assert "| adapters | LoRA, rank 3, alpha 6 |" in text and "training data" not in text


def export(base, **changes):
    known = model_card.Export(REPO, "merged", base, None, None, 3, 6.0, None)
    return dataclasses.replace(known, **changes)


def test_licence_and_name_of_the_base_are_stated_where_they_are_known(tmp_path):
    base = tmp_path / "models--Qwen--Some-VL" / "snapshots" / "abc"
    base.mkdir(parents=True)
    assert model_card.card(export(base)).data.license is None
    known = "license: other\nlicense_name: qwen-research\nlicense_link: https://x/LICENSE"
    (base / "README.md").write_text(f"---\n{known}\ntags: [a]\n---\n# Some\n")
    data = model_card.card(export(base)).data
    assert (data.license, data["license_name"]) == ("other", "qwen-research")
    assert data.base_model == "Qwen/Some-VL" and data.tags == ["speciarl_jax"]


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, to a token that may or may not write."""

    def log_message(self, *args):
        pass

    def _send(self, status, value, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), said)
        self.end_headers()
        self.wfile.write(body)

    def _allowed(self, writes=False):
        token, state = self.headers.get("Authorization"), self.server.state
        if token is None or "bad" in token:
            self._send(401, {"error": "Invalid user token."})
        elif writes and "read" in token:
            self._send(403, {"error": "Forbidden"})
        elif f"/api/models/{REPO}" in self.path and state["files"] is None:
            headers = {"X_Error_Code": "RepoNotFound", "X_Error_Message": "Repository Not Found"}
            self._send(404, {"error": "Repository not found"}, **headers)
        else:
            return True
        return False

    def do_GET(self):
        if not self._allowed():
            return
        state = self.server.state
        if self.path.startswith("/api/whoami"):
            self._send(200, {"name": "me", "type": "user", "orgs": []})
        elif "/resolve/" in self.path:
            body = state["files"][self.path.rpartition("/")[2]]
            about = {"ETag": f'"{zlib.crc32(body)}"', "X_Repo_Commit": f"{zlib.crc32(body):040}"}
            self._send(200, body, **about)
        else:
            names = [
                {"type": "file", "path": name, "size": len(body), "oid": "0"}
                for name, body in state["files"].items()
            ]
            siblings = [{"rfilename": one["path"]} for one in names]
            known = {"id": REPO, "sha": "a" * 40, "siblings": siblings}
            self._send(200, names if "/tree/" in self.path else known)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._allowed(writes=not self.path.endswith("validate-yaml")):
            return
        state = self.server.state
        if self.path.endswith("/repos/create"):
            state["created"] = json.loads(body)
            if state["files"] is None:
                state["files"] = {".gitattributes": b""}
            self._send(200, {"url": f"http://{self.headers['Host']}/{REPO}"})
        elif "/preupload/" in self.path:
            asked = [one["path"] for one in json.loads(body)["files"]]
            kept = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]
            self._send(200, {"files": kept})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    state["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del state["files"][value["path"]]
            url = f"http://{self.headers['Host']}/{REPO}/commit/{'b' * 40}"
            self._send(200, {"success": True, "commitOid": "b" * 40, "commitUrl": url})
        else:
            self._send(200, {"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """(token, files of the repository) -> an API that talks to a server of this process."""
    with contextlib.ExitStack() as stack:

        def start(token="hf_write", files=None):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
            server.state = {"files": files, "created": None}
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            address = f"http://127.0.0.1:{server.server_address[1]}"
            return huggingface_hub.HfApi(endpoint=address, token=token), server.state

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield start


@pytest.fixture
def folder(tmp_path):
    """An export with its card."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model_card.card(export(tmp_path / "base")).save(folder / "README.md")
    return folder


@pytest.mark.parametrize("private", [True, False])
def test_a_push_makes_the_repository_and_uploads_every_file(hub, folder, private, tmp_path):
    api, state = hub()
    hub_push.check_before(REPO, api)
    assert state["files"] is None  # looking changes nothing
    url = hub_push.push(folder, REPO, private=private, api=api)
    assert url.endswith("b" * 40)
    assert state["created"]["name"] == "birds" and state["created"]["organization"] == "me"
    said = state["created"]
    assert said.get("private", said.get("visibility") == "private") == private
    sent = {name: body for name, body in state["files"].items() if name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_is_replaced_and_other_content_is_not(hub, folder):
    other = {".gitattributes": b"", "README.md": b"# mine\n", "model.safetensors": b"1"}
    with pytest.raises(ValueError, match="me/birds holds other content .README.md, model.safe"):
        hub_push.check_before(REPO, hub(files=other)[0])
    before = {"README.md": (folder / "README.md").read_bytes(), "old.safetensors": b"1"}
    api, state = hub(files={".gitattributes": b""} | before)
    hub_push.check_before(REPO, api)
    hub_push.push(folder, REPO, private=True, api=api)
    assert set(state["files"]) == {".gitattributes", "README.md", "config.json"}


def test_errors_of_the_hub_say_what_to_do(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.hf_api, "get_token", lambda: None)
    for token, message in (
        (None, "there is no token .* `hf auth login`"),
        ("hf_bad", "the hub does not know the token; run `hf auth login` again"),
    ):
        with pytest.raises(ValueError, match=message):
            hub_push.check_before(REPO, hub(token)[0])
    again = f"{folder} is whole: .* `hf upload me/birds {folder}`"
    with pytest.raises(ValueError, match=f"the token may not write to me/birds; .*{again}"):
        hub_push.push(folder, REPO, private=True, api=hub("hf_read")[0])
    away = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_write")
    with pytest.raises(ValueError, match="the hub is out of reach"):
        hub_push.check_before(REPO, away)


@pytest.mark.parametrize("name", ["birds", "me/b/c", "me/birds.git", "me/b ird"])
def test_what_is_no_name_of_a_repository_is_refused(name):
    with pytest.raises(ValueError, match=f"--push={name}"):
        hub_push.check_before(name, None)
