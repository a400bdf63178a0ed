-- What was read from the metadata store, what could not be read, by which run, and which rules judged it.

create table l2inv.run (
    run_id      bigint generated always as identity primary key,
    stage       text not null,
    actor       text not null,
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz,  -- null: still running, or killed
    result      jsonb
);

create table l2inv.dataset_version (
    dataset_id   text collate "C" not null,
    version      integer not null check (version > 0),
    op_id        text collate "C" not null,
    content_hash bytea not null,
    record       jsonb not null,
    run_id       bigint not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    withdrawn    boolean not null default false,  -- the store no longer holds it; the record is the last one read
    primary key (dataset_id, version)
);

create index dataset_version_op on l2inv.dataset_version (op_id);

create trigger append_only before update or delete or truncate on l2inv.dataset_version
    for each statement execute function l2inv.refuse_change();
alter table l2inv.dataset_version enable always trigger append_only;

create table l2inv.quarantine (
    raw_hash    bytea primary key,  -- one row a record, however often it is read
    dataset_id  text,
    reason      text not null,
    raw         bytea not null,     -- as received: it may be no valid text
    first_seen  timestamptz not null default clock_timestamp(),
    last_seen   timestamptz not null default clock_timestamp(),
    resolved_at timestamptz         -- since when it is readable, or gone from the store
);

create table l2inv.criteria (
    criteria_version text primary key,  -- a hash of the rules
    rules            jsonb not null,
    first_used_at    timestamptz not null default clock_timestamp()
);

create trigger append_only before update or delete or truncate on l2inv.criteria
    for each statement execute function l2inv.refuse_change();
alter table l2inv.criteria enable always trigger append_only;
