-- The event log: every event of every OP, and the present state that follows from them.

-- event_id, recorded_at, recorded_by and hash are set by the trigger, whatever an INSERT contains.
create table l2inv.event (
    event_id    bigint primary key,
    op_id       text collate "C" not null check (op_id <> '' and length(op_id) <= 200),
    seq         integer not null,      -- within the OP, from 1 without holes
    kind        text not null,         -- what happened
    state       text check (state in ('discovered', 'invertible', 'not_invertible', 'preprocessed',
                                      'working', 'inverted', 'published', 'error')),  -- null: it stayed
    actor       text not null check (actor <> ''),  -- who did it, as the caller stated
    recorded_at timestamptz not null,
    run_id      bigint,                -- no foreign key: an event outlives what it refers to
    detail      jsonb not null default '{}',
    recorded_by text not null,         -- the database role of the session
    hash        bytea not null,        -- over the columns above and the hash of the event before it: docs/audit.md
    unique (op_id, seq),
    constraint event_detail_fits check (l2inv.detail_fits(kind, detail))
);

create sequence l2inv.event_event_id_seq owned by l2inv.event.event_id;

comment on table l2inv.event is 'Append-only: what happened to each OP, in order';

create index event_told on l2inv.event (op_id, event_id)
    where kind in ('published', 'withdrawn', 'reinstated', 'restored', 'voided');
create index event_told_after on l2inv.event (event_id)
    where kind in ('published', 'withdrawn', 'reinstated', 'restored', 'voided');
create index event_voided on l2inv.event (op_id) where kind = 'voided';
create index event_job on l2inv.event (op_id, seq) where kind = 'preprocess_started';
create index event_issued on l2inv.event using gin ((detail -> 'inversions') jsonb_path_ops)
    where kind in ('claimed', 'inverted', 'amended');
create index event_named on l2inv.event ((detail ->> 'inversion_id')) where kind = 'inversion_named';

create function l2inv.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, tg_op
        using errcode = 'L2INV', hint = 'information is only ever added; record a new event';
end $$;

create trigger append_only before update or delete or truncate on l2inv.event
    for each statement execute function l2inv.refuse_change();
alter table l2inv.event enable always trigger append_only;  -- whatever session_replication_role is

-- Each OP's present state: derived from its events, and updated in the same transaction.
create table l2inv.op_state (
    op_id              text collate "C" primary key,
    seq                integer not null,      -- of the newest event
    hash               bytea not null,        -- of the newest event
    state              text not null,
    since              timestamptz not null,
    state_before_error text,
    datasets_seq       integer not null,      -- of the newest event that a verdict depends on
    verdict_seq        integer,               -- of the newest verdict
    criteria_version   text,                  -- of the newest verdict
    overruled_seq      integer,               -- of the event that overrules the newest verdict, until its data change
    on_hold_seq        integer,               -- of the event that put it on hold, until it is taken off
    cycle              integer not null,      -- which inversion of the OP it is, from 1
    priority           integer not null default 0,
    assignee           text,
    due_at             timestamptz,           -- of the claim
    r0_class           smallint,              -- of an OP in state preprocessed, as of its newest event: 1 good to 4 unknown
    arrived            timestamptz,           -- the first createDate of its datasets' versions
    observed           timestamptz,           -- the first startTime of its datasets' versions
    reasons            jsonb                  -- of the newest verdict: why not, in short, as in l2inv.reasons
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01);

comment on table l2inv.op_state is 'Derived from l2inv.event by its trigger; never written otherwise';

create index op_state_state on l2inv.op_state (state);
create index op_state_ready on l2inv.op_state (priority desc, since, op_id) where state = 'preprocessed';
create index op_state_offered on l2inv.op_state (priority desc, r0_class, since, op_id)
    where state = 'preprocessed' and on_hold_seq is null and not coalesce(datasets_seq > verdict_seq, false);
create index op_state_assignee on l2inv.op_state (assignee) where assignee is not null;

-- Only the trigger on event writes op_state: as the owner of the table, from within a trigger.
create function l2inv.refuse_direct_write() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    if pg_trigger_depth() < 2
        or current_user <> (select pg_get_userbyid(relowner) from pg_class where oid = tg_relid) then
        raise exception '%.% follows the events: % is refused', tg_table_schema, tg_table_name, tg_op
            using errcode = 'L2INV', hint = 'record an event; it takes the state with it';
    end if;
    return null;
end $$;

create trigger derived_only before insert or update or delete or truncate on l2inv.op_state
    for each statement execute function l2inv.refuse_direct_write();
alter table l2inv.op_state enable always trigger derived_only;

-- A summary of why a verdict's instrument programs are not invertible: the number of programs, the unmet criteria, and the
-- criteria that alone keep a program from passing, each with the (negative) margin of the worst dataset in the nearest such
-- program. l2inv/domain/criteria.py computes the same in Python; a test compares them.
create function l2inv.reasons(verdict jsonb) returns jsonb language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp as $$
    with unmet as materialized (
        select number, c ->> 'name' as name, c ->> 'result' = 'fail' as fails,
               case when jsonb_typeof(c -> 'measured') = 'number' and jsonb_typeof(c -> 'required') = 'number'
                    then -least(1e300, abs((c ->> 'measured')::numeric - (c ->> 'required')::numeric))
                    when starts_with(c ->> 'name', 'band ') and jsonb_typeof(c -> 'measured') = 'array'  -- nm missing of the nearest range
                    then (select max(greatest(-1e300, -greatest((r ->> 0)::numeric - coalesce(c -> 'required' ->> 0, c ->> 'required')::numeric, 0)
                                                      - greatest(coalesce(c -> 'required' ->> 1, c ->> 'required')::numeric - (r ->> 1)::numeric, 0)))
                          from jsonb_array_elements(c -> 'measured') r
                          where jsonb_typeof(r -> 0) = 'number' and jsonb_typeof(r -> 1) = 'number'
                              and jsonb_typeof(coalesce(c -> 'required' -> 0, c -> 'required')) = 'number'
                              and jsonb_typeof(coalesce(c -> 'required' -> 1, c -> 'required')) = 'number') end as margin
        from jsonb_path_query(verdict, '$.instrument_programs[*]') with ordinality as p (program, number)
        cross join jsonb_path_query(program, '$.criteria[*] ? (@.name.type() == "string" && @.result <> "pass"
                                                               && !(@.optional == true))') c
    ), program as (
        select number, min(name) as name, (array_agg(margin order by coalesce(margin, 0), margin))[1] as margin
        from unmet group by number having min(name) = max(name) and bool_and(fails)
    ), alone as (
        select distinct on (name) name, margin from program order by name, coalesce(margin, 0) desc, number
    )
    select jsonb_build_object(
        'programs', (select count(*) from jsonb_path_query(verdict, '$.instrument_programs[*]')),
        'undetermined', verdict -> 'undetermined',
        'unmet', (select coalesce(jsonb_object_agg(name, result), '{}') from (
                      select name, case when bool_or(fails) then 'fail' else 'unknown' end as result
                      from unmet group by name) u),
        'alone', (select coalesce(jsonb_object_agg(name, margin), '{}') from alone))
$$;

-- Refuses an event that is out of sequence or not allowed; completes and hashes any other, and updates op_state.
create function l2inv.record_event() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp as $$
declare
    op              l2inv.op_state;
    affects_verdict boolean := new.kind in ('discovered', 'reopened')
        or new.kind = 'datasets_changed' and new.detail -> 'affects_verdict' = 'true';
    voided_seq      integer := case new.kind when 'voided' then (new.detail ->> 'seq')::integer end;
    is_invertible   jsonb := case new.kind when 'judged' then new.detail #> '{verdict,invertible}'
                                           when 'overruled' then new.detail -> 'invertible' end;
begin
    if tg_relid <> 'l2inv.event'::regclass then
        raise exception '%.% is no table of events', tg_table_schema, tg_table_name using errcode = 'L2INV';
    end if;
    select * into op from l2inv.op_state where op_id = new.op_id for update;
    if new.seq <> coalesce(op.seq, 0) + 1 then
        raise exception 'OP %: event % is out of sequence, the next is %', new.op_id, new.seq, coalesce(op.seq, 0) + 1
            using errcode = 'L2INV', hint = 'sequence numbers start at 1 and have no holes';
    end if;
    if not l2inv.is_allowed(new.kind, op.state, new.state, op.state_before_error) then
        raise exception 'OP % in state % allows no event % to state %', new.op_id, coalesce(op.state, '(unknown)'),
            new.kind, coalesce(new.state, '(unchanged)')
            using errcode = 'L2INV', hint = 'see the states in README.md';
    end if;
    if is_invertible = to_jsonb(coalesce(new.state, op.state) = 'not_invertible') then
        raise exception 'OP %: event % leaves it in state %, against its own verdict', new.op_id, new.kind,
            coalesce(new.state, op.state)
            using errcode = 'L2INV', hint = 'see the states in README.md';
    end if;
    if new.kind = 'claimed' and op.on_hold_seq is not null then
        raise exception 'OP % is on hold: it cannot be claimed', new.op_id
            using errcode = 'L2INV', hint = 'see: l2inv show OP';
    end if;
    if new.kind = 'taken_over' and op.due_at > clock_timestamp() then
        raise exception 'OP % is not overdue: it cannot be taken over', new.op_id
            using errcode = 'L2INV', hint = 'see: l2inv show OP';
    end if;
    if new.kind = 'voided' and not pg_has_role(session_user, current_user, 'member') then
        raise exception 'OP %: only the owner of the schema may void an event, not %', new.op_id, session_user
            using errcode = 'L2INV', hint = 'see docs/operations.md';
    end if;
    if voided_seq not between 1 and op.seq then
        raise exception 'OP % has no event % to be voided', new.op_id, voided_seq
            using errcode = 'L2INV', hint = 'see: l2inv history OP';
    end if;

    new.event_id := nextval('l2inv.event_event_id_seq');
    new.recorded_at := clock_timestamp();
    new.recorded_by := session_user;
    new.hash := sha256(convert_to(jsonb_build_array(
        encode(op.hash, 'hex'), new.event_id, new.op_id, new.seq, new.kind, new.state, new.actor, new.recorded_by,
        replace(to_char(new.recorded_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000', ''),
        new.run_id, new.detail)::text, 'UTF8'));

    op.op_id := new.op_id;
    op.seq := new.seq;
    op.hash := new.hash;
    op.priority := coalesce(op.priority, 0);
    op.cycle := coalesce(op.cycle, 1);
    if new.state is not null then
        op.state_before_error := case new.state when 'error' then op.state end;
        op.state := new.state;
        op.since := new.recorded_at;
    end if;
    if affects_verdict then
        op.datasets_seq := new.seq;
        op.overruled_seq := null;
    end if;
    case new.kind
        when 'judged' then
            op.verdict_seq := new.seq;
            op.criteria_version := new.detail ->> 'criteria_version';
            op.reasons := l2inv.reasons(new.detail -> 'verdict');
            op.overruled_seq := null;
        when 'overruled' then
            op.overruled_seq := new.seq;
        when 'claimed', 'handed_over', 'taken_over', 'resumed' then
            op.assignee := new.detail ->> 'assignee';
            op.due_at := (new.detail ->> 'due_at')::timestamptz;
        when 'extended' then
            op.due_at := (new.detail ->> 'due_at')::timestamptz;
        when 'inverted' then
            op.due_at := null;
        when 'released', 'reopened' then
            op.assignee := null;
            op.due_at := null;
            op.cycle := op.cycle + case new.kind when 'reopened' then 1 else 0 end;
        when 'put_on_hold' then
            op.on_hold_seq := new.seq;
        when 'taken_off_hold' then
            op.on_hold_seq := null;
        when 'prioritized' then
            op.priority := (new.detail ->> 'priority')::integer;
        when 'voided' then
            op.criteria_version := case when op.verdict_seq <> voided_seq then op.criteria_version end;
            op.reasons := case when op.verdict_seq <> voided_seq then op.reasons end;
            op.verdict_seq := nullif(op.verdict_seq, voided_seq);
            op.overruled_seq := nullif(op.overruled_seq, voided_seq);
            op.on_hold_seq := nullif(op.on_hold_seq, voided_seq);
        else
            null;
    end case;

    -- The median over its datasets of their median Fried parameters, by the word for the number in cm to a decimal. It
    -- becomes another only with them. Each dataset is looked up by index, whatever PostgreSQL knows of the table's size.
    if op.state <> 'preprocessed' then
        op.r0_class := null;
    elsif new.state is not null or new.kind = 'datasets_changed' then
        select case when r0_m >= 0.0695 then 1 when r0_m >= 0.0495 then 2 when r0_m is not null then 3 else 4 end
        into op.r0_class
        from (select percentile_cont(0.5) within group (
                         order by (v.record -> 'friedParameter' ->> 'med')::double precision) as r0_m
              from l2inv.dataset_version v
              where v.op_id = new.op_id and not v.withdrawn and v.version = (
                  select max(version) from l2inv.dataset_version n where n.dataset_id = v.dataset_id)) d;
    end if;

    if new.kind in ('discovered', 'datasets_changed') then
        select min((record ->> 'createDate')::timestamptz), min((record ->> 'startTime')::timestamptz)
        into op.arrived, op.observed from l2inv.dataset_version where op_id = new.op_id;
    end if;

    insert into l2inv.op_state select op.*
    on conflict (op_id) do update set
        seq = excluded.seq, hash = excluded.hash, state = excluded.state, since = excluded.since,
        state_before_error = excluded.state_before_error, datasets_seq = excluded.datasets_seq,
        verdict_seq = excluded.verdict_seq, criteria_version = excluded.criteria_version,
        overruled_seq = excluded.overruled_seq, on_hold_seq = excluded.on_hold_seq, cycle = excluded.cycle,
        priority = excluded.priority, assignee = excluded.assignee, due_at = excluded.due_at, r0_class = excluded.r0_class,
        arrived = excluded.arrived, observed = excluded.observed, reasons = excluded.reasons;
    return new;
end $$;

create trigger record_event before insert on l2inv.event for each row execute function l2inv.record_event();
alter table l2inv.event enable always trigger record_event;
