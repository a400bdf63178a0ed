-- What was read from the metadata store, what could not be read, the criteria, and the runs.

-- Whether a record is a dataset as the store describes it, under the store's names; other fields are allowed. One jsonpath
-- checks as much as it can, since a first scan checks every dataset. In it, `!(… != …)` allows a field to be missing.
create function l2inv.record_fits(record jsonb) returns boolean language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp as $$
begin
    return l2inv.is_readable(record) and record @@ '
            $.type() == "object"
            && $.datasetId.type() == "string" && $.datasetId != ""
            && $.observingProgramExecutionId.type() == "string" && $.observingProgramExecutionId != ""
            && $.createDate.type() == "string" && !($.updateDate.type() != "string")
            && !($.startTime.type() != "string") && !($.endTime.type() != "string")
            && !($.embargoEndDate.type() != "string")
            && !($.instrumentProgramExecutionId.type() != "string") && !($.instrumentProgramExecutionId == "")
            && !($.productId.type() != "string") && !($.instrumentName.type() != "string")
            && !($.primaryProposalId.type() != "string") && !($.primaryExperimentId.type() != "string")
            && !($.experimentDescription.type() != "string") && !($.bucket.type() != "string")
            && !($.status.type() != "string") && !($.stokesParameters.type() != "string")
            && !($.boundingBox.type() != "string") && !($.asdfObjectKey.type() != "string")
            && !($.browseMovieUrl.type() != "string")
            && !($.isEmbargoed.type() != "boolean")
            && !($.spectralLines.type() != "array") && !exists($.spectralLines[*].type() ? (@ != "string"))
            && !($.frameCount.type() != "number") && !($.aoLocked.type() != "number")
            && !($.health.type() != "object") && !exists($.health.*.type() ? (@ != "number" && @ != "null"))
            && !($.gosStatus.type() != "object") && !exists($.gosStatus.*.type() ? (@ != "number" && @ != "null"))
            && !($.wavelengthMin.type() != "number") && !($.wavelengthMax.type() != "number")
            && !($.exposureTime.type() != "number")
            && !($.friedParameter.type() != "object") && !exists($.friedParameter.*.type() ? (@ != "number"))
            && !($.lightLevel.type() != "object") && !exists($.lightLevel.*.type() ? (@ != "number"))
            && !($.polarimetricAccuracy.type() != "object")
            && !exists($.polarimetricAccuracy.*.type() ? (@ != "number"))
            && !exists($.**{1 to 2} ? (@ < 4.95e-324 && @ > -4.95e-324 && @ != 0))'  -- too small for floating point
        -- What a jsonpath cannot check, checked in the JSON text: times are UTC, counts are integers.
        and concat_ws(' ', record ->> 'createDate', record ->> 'updateDate', record ->> 'startTime',
                      record ->> 'endTime', record ->> 'embargoEndDate')
            ~ ('^([0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]'
               || '([.][0-9]{1,6})?(Z|[+]00:00)( (?=.)|$))+$')
        and num_nulls((record ->> 'createDate')::timestamptz, (record ->> 'updateDate')::timestamptz,
                      (record ->> 'startTime')::timestamptz, (record ->> 'endTime')::timestamptz,
                      (record ->> 'embargoEndDate')::timestamptz) < 5  -- refuses a date that does not exist
        and concat_ws(', ', record -> 'frameCount', record -> 'aoLocked',
                      jsonb_path_query_array(record, '$.health.* ? (@ != null)'),
                      jsonb_path_query_array(record, '$.gosStatus.* ? (@ != null)'))
            ~ '^(\[|\]|, |[0-9]{1,15}(, |\]|$))*$';
end $$;

create table l2inv.dataset_version (
    dataset_id   text collate "C" not null check (dataset_id <> '' and length(dataset_id) <= 200),
    version      integer not null check (version > 0),
    op_id        text collate "C" not null check (op_id <> '' and length(op_id) <= 200),
    content_hash bytea not null,
    record       jsonb not null,
    run_id       bigint not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    withdrawn    boolean not null default false,  -- the store no longer holds it; the record is the last one read
    primary key (dataset_id, version),
    constraint dataset_version_record_fits check (l2inv.record_fits(record))
);

create index dataset_version_op on l2inv.dataset_version (op_id);

create trigger append_only before update or delete or truncate on l2inv.dataset_version
    for each statement execute function l2inv.refuse_change();
alter table l2inv.dataset_version enable always trigger append_only;

-- Without this, a very large version could leave no number for the next scan. A dataset's first version is not checked,
-- since the first scan adds hundreds of thousands.
create function l2inv.refuse_gap() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from l2inv.dataset_version where dataset_id = new.dataset_id and version = new.version - 1) then
        raise exception 'dataset %: version % is out of sequence', new.dataset_id, new.version using errcode = 'L2INV';
    end if;
    return null;
end $$;

create trigger without_gaps after insert on l2inv.dataset_version
    for each row when (new.version > 1) execute function l2inv.refuse_gap();
alter table l2inv.dataset_version enable always trigger without_gaps;

-- The hash of the bytes in which each dataset was last received, so that a scan decodes only what differs. The table may
-- be emptied at any time: datasets missing here are decoded, and compared with their newest version.
create table l2inv.received (
    dataset_id   text collate "C" primary key,
    raw_hash     bytea unique,       -- of the reader and the bytes; null: to be decoded again
    op_id        text collate "C" not null,
    content_hash bytea not null,     -- of the newest version
    updated_at   timestamptz,        -- the store's updateDate
    given        bigint not null     -- which fields are not null, a bit each: for the drift profile
);

create table l2inv.quarantine (
    raw_hash    bytea primary key,  -- one row a record, however often it is read
    dataset_id  text,
    reason      text not null,
    raw         bytea not null,     -- as received: it may not be valid text
    is_second   boolean not null default false,  -- readable, but differs from the first record of its dataset in the scan
    first_seen  timestamptz not null default clock_timestamp(),
    last_seen   timestamptz not null default clock_timestamp()
                check (last_seen between '2000-01-01Z' and '9999-01-01Z'),  -- which any reader can represent
    resolved_at timestamptz         -- when it became readable, or was gone from the store
);

create table l2inv.criteria (
    criteria_version text primary key,  -- a hash of the rules
    rules            jsonb not null check (jsonb_typeof(rules) = 'object'),
    first_used_at    timestamptz not null default clock_timestamp()
);

create trigger append_only before update or delete or truncate on l2inv.criteria
    for each statement execute function l2inv.refuse_change();
alter table l2inv.criteria enable always trigger append_only;

create table l2inv.run (
    run_id      bigint generated always as identity primary key,
    stage       text not null,
    actor       text not null,
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz,  -- null: still running, or killed
    result      jsonb check (l2inv.report_fits(result))
);

-- A run's identity never changes, and once it ended, neither does its report.
create function l2inv.end_run() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if old.finished_at is not null then
        raise exception 'run % has ended: % is refused', old.run_id, tg_op using errcode = 'L2INV';
    end if;
    if (new.run_id, new.stage, new.actor, new.started_at)
        is distinct from (old.run_id, old.stage, old.actor, old.started_at)
        or new.finished_at is null and new.result is not null then
        raise exception 'run % may only end: % is refused', old.run_id, tg_op using errcode = 'L2INV';
    end if;
    if new.finished_at is not null then
        new.finished_at := clock_timestamp();
    end if;
    return new;
end $$;

create trigger end_run before update on l2inv.run for each row execute function l2inv.end_run();
alter table l2inv.run enable always trigger end_run;
create trigger append_only before delete or truncate on l2inv.run
    for each statement execute function l2inv.refuse_change();
alter table l2inv.run enable always trigger append_only;

-- Locks that one session at a time can hold. Anyone who connects can take an advisory lock, so each lock's key is drawn at
-- random and stored here with the process that took it; a process that guesses the key does not hold the lock.
create table l2inv.lock (
    name text primary key,  -- a stage; `export`, locked while events about inversions are added; or `issue`, while ids are issued
    key  bigint,
    pid  integer,
    role oid     -- of the session: anyone can see the key while it is held, and may later get the same pid
);

insert into l2inv.lock (name) values ('export'), ('issue');

-- Takes a lock until the session ends or unlocks its key, without waiting; returns false if another session has it.
create function l2inv.take_lock(wanted text) returns boolean language plpgsql
    set search_path = pg_catalog, pg_temp as $$
declare
    last l2inv.lock;
begin
    if not exists (select from l2inv.lock where name = wanted) then
        insert into l2inv.lock (name) values (wanted) on conflict do nothing;
    end if;
    select * into last from l2inv.lock where name = wanted for update skip locked;
    if not found or exists (
        select from pg_locks join pg_stat_activity using (pid)
        where locktype = 'advisory' and objsubid = 1 and granted and pid = last.pid and usesysid = last.role
            and database = (select oid from pg_database where datname = current_database())
            and classid::bigint << 32 | objid::bigint = last.key
    ) then
        return false;
    end if;
    last.key := hashtextextended(gen_random_uuid()::text, 0);
    perform pg_advisory_lock(last.key);
    update l2inv.lock set key = last.key, pid = a.pid, role = a.usesysid from pg_stat_activity a
    where name = wanted and a.pid = pg_backend_pid();
    return true;
end $$;

-- A role that may execute a trigger's function could attach it to a table of its own; only the owner needs to.
revoke all on function l2inv.is_allowed, l2inv.shape, l2inv.fits, l2inv.is_readable, l2inv.detail_fits,
    l2inv.report_fits, l2inv.refuse_change, l2inv.refuse_direct_write, l2inv.reasons, l2inv.record_event,
    l2inv.record_fits, l2inv.refuse_gap, l2inv.end_run, l2inv.take_lock from public;
