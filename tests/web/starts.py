"""The calls of the original's clients: start, list, status, kill, health; paths, fields and statuses as they are documented.

starts.py URL STARTER VIEWER, where one run of the workflow `builder` may run at once.
"""

import json
import sys
import time
import urllib.error
import urllib.request

URL, STARTER, VIEWER = sys.argv[1:]
PATIENCE = 60


def ask(method, path, body=None, token=STARTER):
    """The status and the JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + "/api/v1" + path, data, method=method)
    request.add_header("Authorization", "Bearer " + token)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "not in time: " + what
        time.sleep(0.02)


def start(command, **more):
    status, run = ask("POST", "/workflows/local/run/builder", {"command": command, **more})
    assert status == 202 and run["success"] is True, (status, run)
    return run


def status_of(run_id):
    status, run = ask("GET", f"/workflows/local/run/{run_id}/status", token=VIEWER)
    assert status == 200 and run["run_id"] == run_id and run["workflow_name"] == "builder", (status, run)
    assert {"status", "phase", "health", "started_at", "finished_at", "progress", "metrics", "result"} <= set(run), run
    return run


def kill(run_id, query=""):
    return ask("POST", f"/workflows/local/run/{run_id}/kill{query}", {"reason": "by the client"})


first = start(["sleep", "1000"], workspace_path="/tmp")
assert first["status"] == "starting", first
second = start(["true"])
third = start(["true"])
assert (second["status"], third["status"]) == ("queued", "queued"), (second, third)
assert third["queue"]["position"] == 2 and third["queue"]["length"] == 2, third
assert "1 builder run is running of 1 allowed" in third["message"], third
assert status_of(second["run_id"])["status"] == "queued"
assert status_of(first["run_id"])["status"] == "running"

status, listed = ask("GET", "/workflows/local/runs?phase=queued", token=VIEWER)
assert status == 200 and [r["run_id"] for r in listed["runs"]] == [third["run_id"], second["run_id"]], listed

status, killed = kill(second["run_id"])
assert status == 200 and killed["success"] is True and killed["receipt"] is None, (status, killed)
assert "before its command was executed" in killed["message"], killed
assert status_of(second["run_id"])["status"] == "killed"
assert kill(second["run_id"])[0] == 409

status, killed = kill(first["run_id"], "?force=true")
fields = {"success", "run_id", "workflow_name", "killed_at", "kill_method", "kill_duration_ms", "cleanup_status", "message"}
assert status == 200 and fields <= set(killed), (status, killed)
assert killed["success"] is True and killed["kill_method"] == "force" and killed["cleanup_status"] == "complete", killed

until("the third has had its turn", lambda: status_of(third["run_id"])["status"] == "completed")
assert status_of(third["run_id"])["result"]["code"] == 0

assert kill("run_0123456789ab")[0] == 404
assert kill("nonsense")[0] == 422
assert ask("POST", f"/workflows/other/run/{first['run_id']}/kill", {})[0] == 404
assert ask("POST", f"/workflows/local/run/{third['run_id']}/kill", {}, VIEWER)[0] == 403
assert ask("POST", "/workflows/local/run/builder", {"command": ["true"]}, VIEWER)[0] == 403
status, health = ask("GET", "/monitoring/health", token=VIEWER)
assert status == 200 and health["status"] in ("healthy", "warning", "critical"), health
