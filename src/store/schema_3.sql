-- What statistics ask of a run that is over, in an index that answers them alone: the rows themselves hold the whole view.
ALTER TABLE runs ADD COLUMN ready_at INTEGER;
ALTER TABLE runs ADD COLUMN cpu_usec INTEGER;
ALTER TABLE runs ADD COLUMN memory_peak_bytes INTEGER;
-- Why Guardian ended it or what it left, none if it did not: `kill_reason` knows the former only.
ALTER TABLE runs ADD COLUMN ended_by TEXT;
UPDATE runs SET
    ready_at = CAST(view ->> '$.ready_at' AS INTEGER),
    cpu_usec = CAST(view ->> '$.usage.cpu_usec' AS INTEGER),
    memory_peak_bytes = CAST(view ->> '$.usage.memory_peak_bytes' AS INTEGER),
    ended_by = (SELECT reason FROM kills WHERE run_id = id)
WHERE phase = 'finished' AND json_valid(view);
CREATE INDEX runs_past ON runs
    (workflow, finished_at, uid, started_at, ready_at, outcome, exit_code, ended_by, cpu_usec, memory_peak_bytes)
    WHERE phase = 'finished';
