-- What runs used. `level` 0: a minute with the readings of it (text, each as what it differs by from the one before); they
-- go after an hour, level 1; after a day the minutes of an hour become one row, level 2. `at` is the last reading's time,
-- counters are as of then, memory is the mean of what was read, tasks and pressure are the most.
CREATE TABLE samples (
    run_id            TEXT NOT NULL,
    level             INTEGER NOT NULL,
    at                INTEGER NOT NULL,
    cpu_usec          INTEGER,
    memory_bytes      INTEGER,
    memory_peak_bytes INTEGER,
    tasks             INTEGER,
    io_read_bytes     INTEGER,
    io_write_bytes    INTEGER,
    activity_bytes    INTEGER,
    memory_pressure   INTEGER,
    readings          TEXT,
    PRIMARY KEY (run_id, level, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX samples_age ON samples (level, at);
