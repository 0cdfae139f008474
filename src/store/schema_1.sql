-- The queryable columns stand beside `view`, the run as it is shown, and `state`, which only the engine can read.
CREATE TABLE runs (
    id             TEXT PRIMARY KEY NOT NULL,
    workflow       TEXT NOT NULL,
    name           TEXT,
    uid            INTEGER NOT NULL,
    user           TEXT NOT NULL,
    command        TEXT NOT NULL,          -- a JSON array
    cwd            TEXT NOT NULL,
    phase          TEXT NOT NULL,
    health         TEXT NOT NULL,
    created_at     INTEGER NOT NULL,       -- microseconds since 1970-01-01 UTC, as all times here
    started_at     INTEGER,
    finished_at    INTEGER,
    updated_at     INTEGER NOT NULL,
    last_heartbeat INTEGER,                -- no run sends heartbeats yet
    outcome        TEXT,
    exit_code      INTEGER,
    kill_reason    TEXT,
    main_pid       INTEGER,
    view           TEXT NOT NULL,
    state          TEXT                    -- of a live run only
) STRICT;
CREATE INDEX runs_created ON runs (created_at);
CREATE INDEX runs_workflow ON runs (workflow, created_at);
CREATE INDEX runs_uid ON runs (uid, created_at);
CREATE INDEX runs_live ON runs (created_at) WHERE phase <> 'finished';
CREATE INDEX runs_unhealthy ON runs (health, created_at) WHERE health <> 'healthy';
CREATE INDEX runs_state ON runs (created_at) WHERE state IS NOT NULL;
CREATE INDEX runs_finished ON runs (finished_at) WHERE phase = 'finished';

-- No foreign key to `runs`: a kill is recorded even if its run's row was lost with a database set aside.
CREATE TABLE kills (
    run_id        TEXT PRIMARY KEY NOT NULL,
    mode          TEXT NOT NULL,
    reason        TEXT NOT NULL,
    reason_text   TEXT NOT NULL,
    actor_uid     INTEGER,                 -- none: the instance itself, by rule
    actor         TEXT NOT NULL,
    requested_at  INTEGER NOT NULL,
    receipt       TEXT,                    -- none: the intent is recorded, the kill is not done
    survivors     INTEGER,
    duration_usec INTEGER
) STRICT;
CREATE INDEX kills_requested ON kills (requested_at);

CREATE TABLE events (
    seq       INTEGER PRIMARY KEY,
    time_usec INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    run       TEXT,
    workflow  TEXT,
    actor_uid INTEGER,
    actor     TEXT NOT NULL,
    reason    TEXT NOT NULL,
    details   TEXT NOT NULL,
    prev_hash BLOB NOT NULL,
    hash      BLOB NOT NULL
) STRICT;
CREATE INDEX events_run ON events (run) WHERE run IS NOT NULL;

-- The columns of the system that Guardian replaces, so that its reports go on working.
CREATE VIEW workflow_processes AS SELECT
    id AS run_id,
    main_pid AS pid,
    CASE
        WHEN phase <> 'finished' THEN 'running'
        WHEN outcome = 'exited' AND exit_code = 0 THEN 'completed'
        WHEN outcome = 'killed' AND (kill_reason = 'max_runtime' OR kill_reason GLOB '*_timeout') THEN 'timeout'
        WHEN outcome = 'killed' AND kill_reason <> 'launch_incomplete' THEN 'killed'
        ELSE 'failed'
    END AS status,
    workflow AS workflow_name,
    NULL AS session_id,
    uid AS user_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1e6, 'unixepoch') AS started_at,
    cwd AS workspace_path,
    strftime('%Y-%m-%dT%H:%M:%fZ', last_heartbeat / 1e6, 'unixepoch') AS last_heartbeat,
    json_object('command', json(command), 'name', name, 'user', user, 'phase', phase, 'health', health,
        'outcome', outcome, 'exit_code', exit_code, 'kill_reason', kill_reason) AS process_info,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e6, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1e6, 'unixepoch') AS updated_at
FROM runs;
