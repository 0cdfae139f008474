-- What ended a run for a limit is `timeout`, whether that is a time, a number or an amount; and what an agent says of itself.
DROP VIEW workflow_processes;
CREATE VIEW workflow_processes AS SELECT
    id AS run_id,
    main_pid AS pid,
    CASE
        WHEN phase <> 'finished' THEN 'running'
        WHEN outcome = 'exited' AND exit_code = 0 THEN 'completed'
        WHEN outcome = 'killed' AND (kill_reason GLOB '*_timeout'
            OR kill_reason IN ('max_runtime', 'loop', 'max_turns', 'max_tokens', 'max_cost')) THEN 'timeout'
        WHEN outcome = 'killed' AND kill_reason <> 'launch_incomplete' THEN 'killed'
        ELSE 'failed'
    END AS status,
    workflow AS workflow_name,
    CASE WHEN json_valid(view) THEN view ->> '$.progress.session' END AS session_id,
    uid AS user_id,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1e6, 'unixepoch') AS started_at,
    cwd AS workspace_path,
    strftime('%Y-%m-%dT%H:%M:%fZ', CASE WHEN json_valid(view) THEN view ->> '$.heartbeats.last_at' END / 1e6,
        'unixepoch') AS last_heartbeat,
    json_object('command', json(command), 'name', name, 'user', user, 'phase', phase, 'health', health,
        'outcome', outcome, 'exit_code', exit_code, 'kill_reason', kill_reason,
        'progress', json(CASE WHEN json_valid(view) THEN view -> '$.progress' END)) AS process_info,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e6, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', updated_at / 1e6, 'unixepoch') AS updated_at
FROM runs;
