-- The schema of l2inv's database after all migrations, to be read. What makes it are the files of migrations/.
-- Written by `python -m tests.schema`; a test fails when it is stale.

set check_function_bodies = off;  -- functions name tables that come after them

-- Functions

-- Which event may happen in which state. l2inv/states.py has the same table in Python; a test compares the two over
-- every combination.
create function l2inv.is_allowed(kind text, from_state text, to_state text, state_before_error text)
returns boolean language sql immutable parallel safe as $$
    select coalesce(case kind
        when 'discovered' then from_state is null and to_state = 'discovered'
        when 'datasets_changed' then from_state is not null and to_state is null
            or from_state in ('invertible', 'not_invertible', 'preprocessed') and to_state = 'discovered'
        when 'judged' then from_state in ('discovered', 'invertible', 'not_invertible', 'preprocessed')
                and to_state in ('invertible', 'not_invertible') and from_state <> to_state
            or from_state in ('invertible', 'not_invertible', 'preprocessed') and to_state is null
        when 'overruled' then from_state in ('invertible', 'not_invertible', 'preprocessed') and to_state is null
            or from_state = 'not_invertible' and to_state = 'invertible'
            or from_state in ('invertible', 'preprocessed') and to_state = 'not_invertible'
            or from_state = 'preprocessed' and to_state = 'invertible'
        when 'preprocess_started' then from_state = 'invertible' and to_state is null
        when 'preprocessed' then from_state = 'invertible' and to_state = 'preprocessed'
        when 'claimed' then from_state = 'preprocessed' and to_state = 'working'
        when 'extended' then from_state = 'working' and to_state is null
        when 'handed_over' then from_state = 'working' and to_state is null
        when 'taken_over' then from_state = 'working' and to_state is null
        when 'released' then from_state = 'working' and to_state = 'preprocessed'
        when 'inverted' then from_state = 'working' and to_state = 'inverted'
        when 'inversion_named' then from_state = 'inverted' and to_state is null
        when 'inversion_created' then from_state = 'inverted' and to_state is null
        when 'published' then from_state = 'inverted' and to_state = 'published'
        when 'reopened' then from_state in ('inverted', 'published') and to_state = 'discovered'
        when 'withdrawn' then from_state is not null and to_state is null
        when 'cleaned' then from_state = 'published' and to_state is null
        when 'put_on_hold' then from_state is not null and to_state is null
        when 'taken_off_hold' then from_state is not null and to_state is null
        when 'prioritized' then from_state is not null and to_state is null
        when 'noted' then from_state is not null and to_state is null
        when 'failed' then from_state not in ('error', 'published') and to_state = 'error'
        when 'retried' then from_state = 'error' and to_state = state_before_error
    end, false)
$$;

create function l2inv.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, tg_op
        using errcode = 'L2INV', hint = 'information is only ever added; record a new event';
end $$;

-- The trigger of the events is the only writer of op_state: it writes as the table's owner, from within a trigger.
create function l2inv.refuse_direct_write() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    if pg_trigger_depth() < 2 or current_user <> (select pg_get_userbyid(relowner) from pg_class where oid = tg_relid) then
        raise exception '%.% follows the events: % is refused', tg_table_schema, tg_table_name, tg_op
            using errcode = 'L2INV', hint = 'record an event; it takes the state with it';
    end if;
    return null;
end $$;

-- Times as seconds since 1970: how they read must not depend on the session's time zone.
create function l2inv.event_hash(previous_hash bytea, event_id bigint, op_id text, seq integer, kind text, state text,
                                 actor text, recorded_at timestamptz, run_id bigint, detail jsonb)
returns bytea language sql stable parallel safe as $$
    select sha256(convert_to(jsonb_build_array(encode(previous_hash, 'hex'), event_id, op_id, seq, kind, state, actor,
                                               extract(epoch from recorded_at), run_id, detail)::text, 'UTF8'))
$$;

-- Refuses an event that is out of sequence or not allowed; hashes any other, and has op_state follow it.
create function l2inv.record_event() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp as $$
declare
    op              l2inv.op_state;
    affects_verdict boolean := new.kind in ('discovered', 'reopened')
        or new.kind = 'datasets_changed' and new.detail -> 'affects_verdict' = 'true';
begin
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
    if new.kind = 'claimed' and op.on_hold_seq is not null then
        raise exception 'OP % is on hold: it cannot be claimed', new.op_id using errcode = 'L2INV', hint = 'see: l2inv show OP';
    end if;
    if new.kind = 'taken_over' and op.due_at > new.recorded_at then
        raise exception 'OP % is not overdue: it cannot be taken over', new.op_id
            using errcode = 'L2INV', hint = 'see: l2inv show OP';
    end if;

    new.hash := l2inv.event_hash(op.hash, new.event_id, new.op_id, new.seq, new.kind, new.state, new.actor,
                                 new.recorded_at, new.run_id, new.detail);

    op.op_id := new.op_id;
    op.seq := new.seq;
    op.hash := new.hash;
    if new.state is not null then
        op.state_before_error := case new.state when 'error' then op.state end;
        op.state := new.state;
        op.since := new.recorded_at;
    end if;
    if affects_verdict then
        op.datasets_seq := new.seq;
        op.overruled_seq := null;
    end if;
    op.proposal_id := coalesce(new.detail ->> 'proposal_id', op.proposal_id);
    op.experiment_id := coalesce(new.detail ->> 'experiment_id', op.experiment_id);
    op.priority := coalesce(op.priority, 0);
    case new.kind
        when 'judged' then
            op.verdict_seq := new.seq;
            op.criteria_version := new.detail ->> 'criteria_version';
            op.overruled_seq := null;
        when 'overruled' then
            op.overruled_seq := new.seq;
        when 'claimed', 'handed_over', 'taken_over' then
            op.assignee := new.detail ->> 'assignee';
            op.due_at := (new.detail ->> 'due_at')::timestamptz;
        when 'extended' then
            op.due_at := (new.detail ->> 'due_at')::timestamptz;
        when 'inverted' then
            op.due_at := null;
        when 'released', 'reopened' then
            op.assignee := null;
            op.due_at := null;
        when 'put_on_hold' then
            op.on_hold_seq := new.seq;
        when 'taken_off_hold' then
            op.on_hold_seq := null;
        when 'prioritized' then
            op.priority := (new.detail ->> 'priority')::integer;
        else
            null;
    end case;

    insert into l2inv.op_state select op.*
    on conflict (op_id) do update set
        seq = excluded.seq, hash = excluded.hash, state = excluded.state, since = excluded.since,
        state_before_error = excluded.state_before_error, datasets_seq = excluded.datasets_seq,
        verdict_seq = excluded.verdict_seq, criteria_version = excluded.criteria_version,
        overruled_seq = excluded.overruled_seq, on_hold_seq = excluded.on_hold_seq,
        proposal_id = excluded.proposal_id, experiment_id = excluded.experiment_id,
        priority = excluded.priority, assignee = excluded.assignee, due_at = excluded.due_at;
    return new;
end $$;

-- Tables

create table l2inv.event (
    event_id    bigint generated always as identity,
    op_id       text collate "C" not null,
    seq         integer not null,
    kind        text not null,
    state       text,
    actor       text not null,
    recorded_at timestamptz not null default clock_timestamp(),
    run_id      bigint,  -- no foreign key: an event outlives all that it names
    detail      jsonb not null default '{}',
    hash        bytea not null,  -- over the event and the hash of the one before it in its OP
    constraint event_pkey primary key (event_id),
    constraint event_op_id_seq_key unique (op_id, seq),
    constraint event_actor_check check ((actor <> '')),
    constraint event_check check (((kind <> 'prioritized') or (not (jsonb_typeof((detail -> 'priority')) is distinct from 'number')))),
    constraint event_check1 check (((kind <> all (array['claimed', 'handed_over', 'taken_over'])) or (coalesce((detail ->> 'assignee'), '') <> ''))),
    constraint event_check2 check (((kind <> all (array['taken_over', 'extended'])) or ((detail ->> 'due_at') is not null))),
    constraint event_check3 check (((kind <> 'withdrawn') or (not (jsonb_typeof((detail -> 'inversion_ids')) is distinct from 'array')))),
    constraint event_check4 check (((kind <> all (array['taken_over', 'put_on_hold', 'reopened', 'withdrawn'])) or (coalesce((detail ->> 'reason'), '') <> ''))),
    constraint event_detail_check check ((jsonb_typeof(detail) = 'object')),
    constraint event_op_id_check check (((op_id <> '') and (length(op_id) <= 200))),
    constraint event_state_check check ((state = any (array['discovered', 'invertible', 'not_invertible', 'preprocessed', 'working', 'inverted', 'published', 'error'])))
);
comment on table l2inv.event is 'Append-only: what happened to each OP, in order; state is null where the state stayed';
create index event_job on l2inv.event using btree (op_id, seq) where (kind = 'preprocess_started');
create index event_named on l2inv.event using btree (((detail ->> 'inversion_id'))) where (kind = 'inversion_named');
create index event_told on l2inv.event using btree (op_id, event_id) where (kind = any (array['published', 'withdrawn']));
create index event_told_after on l2inv.event using btree (event_id) where (kind = any (array['published', 'withdrawn']));
create trigger append_only before delete or update or truncate on l2inv.event for each statement execute function l2inv.refuse_change();
alter table l2inv.event enable always trigger append_only;
create trigger record_event before insert on l2inv.event for each row execute function l2inv.record_event();
alter table l2inv.event enable always trigger record_event;

create table l2inv.op_state (
    op_id              text collate "C" not null,
    seq                integer not null,  -- of the newest event
    hash               bytea not null,  -- of the newest event
    state              text not null,
    since              timestamptz not null,
    state_before_error text,
    datasets_seq       integer not null,  -- of the newest event that a verdict depends on
    verdict_seq        integer,  -- of the newest verdict
    criteria_version   text,  -- of the newest verdict
    overruled_seq      integer,  -- of the event that overrules the newest verdict, until its data change
    on_hold_seq        integer,  -- of the event that put it on hold, until it is taken off
    proposal_id        text,
    experiment_id      text,
    priority           integer not null default 0,
    assignee           text,
    due_at             timestamptz,  -- of the claim
    constraint op_state_pkey primary key (op_id)
) with (autovacuum_vacuum_scale_factor=0.01, fillfactor=80);
comment on table l2inv.op_state is 'Derived from l2inv.event by its trigger; never written otherwise';
create index op_state_assignee on l2inv.op_state using btree (assignee) where (assignee is not null);
create index op_state_ready on l2inv.op_state using btree (priority desc, since, op_id) where (state = 'preprocessed');
create index op_state_state on l2inv.op_state using btree (state);
create trigger derived_only before insert or delete or update or truncate on l2inv.op_state for each statement execute function l2inv.refuse_direct_write();
alter table l2inv.op_state enable always trigger derived_only;

create table l2inv.run (
    run_id      bigint generated always as identity,
    stage       text not null,
    actor       text not null,
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz,  -- null: still running, or killed
    result      jsonb,
    constraint run_pkey primary key (run_id)
);

create table l2inv.dataset_version (
    dataset_id   text collate "C" not null,
    version      integer not null,
    op_id        text collate "C" not null,
    content_hash bytea not null,
    record       jsonb not null,
    run_id       bigint not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    withdrawn    boolean not null default false,  -- the store no longer holds it; the record is the last one read
    constraint dataset_version_pkey primary key (dataset_id, version),
    constraint dataset_version_version_check check ((version > 0))
);
create index dataset_version_op on l2inv.dataset_version using btree (op_id);
create trigger append_only before delete or update or truncate on l2inv.dataset_version for each statement execute function l2inv.refuse_change();
alter table l2inv.dataset_version enable always trigger append_only;

create table l2inv.quarantine (
    raw_hash    bytea not null,  -- one row a record, however often it is read
    dataset_id  text,
    reason      text not null,
    raw         bytea not null,  -- as received: it may be no valid text
    first_seen  timestamptz not null default clock_timestamp(),
    last_seen   timestamptz not null default clock_timestamp(),
    resolved_at timestamptz,  -- since when it is readable, or gone from the store
    constraint quarantine_pkey primary key (raw_hash)
);

create table l2inv.criteria (
    criteria_version text not null,  -- a hash of the rules
    rules            jsonb not null,
    first_used_at    timestamptz not null default clock_timestamp(),
    constraint criteria_pkey primary key (criteria_version)
);
create trigger append_only before delete or update or truncate on l2inv.criteria for each statement execute function l2inv.refuse_change();
alter table l2inv.criteria enable always trigger append_only;

-- Views

create view l2inv.op as
    select op_id, proposal_id, experiment_id, state, since, assignee, priority, due_at, on_hold_seq is not null as on_hold
    from l2inv.op_state;

create view l2inv.dataset as
    select v.dataset_id, v.version, v.op_id,
           v.record ->> 'productId' as product_id,
           v.record ->> 'instrumentProgramExecutionId' as instrument_program_id,
           v.record ->> 'instrumentName' as instrument,
           v.record ->> 'primaryProposalId' as proposal_id,
           v.record ->> 'bucket' as bucket,
           (v.record ->> 'createDate')::timestamptz as create_date,
           (v.record ->> 'startTime')::timestamptz as start_time,
           (v.record ->> 'wavelengthMin')::double precision as wavelength_min_nm,
           (v.record ->> 'wavelengthMax')::double precision as wavelength_max_nm,
           (v.record -> 'friedParameter' ->> 'med')::double precision as fried_parameter_med_m,
           v.content_hash, v.run_id, v.recorded_at, v.record, v.withdrawn
    from l2inv.dataset_version v
    where not exists (select from l2inv.dataset_version newer
                      where newer.dataset_id = v.dataset_id and newer.version > v.version);

create view l2inv.op_overview as
    select s.op_id, s.proposal_id, s.experiment_id, s.state, s.since, s.priority, s.assignee,
           d.instruments, d.datasets, d.start_time, d.fried_parameter_med,
           coalesce(v.bands, '[]') as bands, coalesce(o.detail -> 'instrument_programs', v.instrument_programs, '[]') as instrument_programs,
           coalesce(s.datasets_seq > s.verdict_seq, false) as inputs_changed, s.overruled_seq is not null as overruled,
           s.due_at, s.on_hold_seq is not null as on_hold, d.is_embargoed
    from l2inv.op_state s
    left join lateral (
        select coalesce(array_agg(distinct instrument) filter (where instrument is not null), '{}') as instruments,
               count(*) as datasets,
               min(start_time) as start_time,
               coalesce(bool_or((record ->> 'isEmbargoed')::boolean), false) as is_embargoed,
               percentile_cont(0.5) within group (order by fried_parameter_med_m) as fried_parameter_med
        from l2inv.dataset where dataset.op_id = s.op_id and not dataset.withdrawn
    ) d on true
    left join lateral (
        select jsonb_agg(distinct substr(c ->> 'name', 6)) filter (where c ->> 'name' like 'band %' and c ->> 'result' = 'pass') as bands,
               jsonb_agg(distinct p ->> 'instrument_program_id') filter (where (p ->> 'invertible')::boolean) as instrument_programs
        from l2inv.event e,
             jsonb_array_elements(e.detail -> 'verdict' -> 'instrument_programs') p,
             jsonb_array_elements(p -> 'criteria') c
        where e.op_id = s.op_id and e.seq = s.verdict_seq
    ) v on true
    left join l2inv.event o on o.op_id = s.op_id and o.seq = s.overruled_seq;

-- What the metadata store aggregates: one row for each inversion that it was told of. The event_id is that of the
-- newest event that told of the OP's inversions: a row that changed is found behind the last one seen, like a new one.
create view l2inv.published_op as
    select (select max(t.event_id) from l2inv.event t
            where t.op_id = e.op_id and t.kind in ('published', 'withdrawn')) as event_id,
           e.op_id, (i ->> 'cycle')::integer as cycle,
           i ->> 'inversion_id' as inversion_id,
           i ->> 'proposal_id' as proposal_id,
           i ->> 'experiment_id' as experiment_id,
           i ->> 'instrument_program_id' as instrument_program_id,
           i -> 'dataset_ids' as dataset_ids,
           i -> 'product_ids' as product_ids,
           i ->> 'bucket' as bucket,
           i ->> 'asdf_object_key' as asdf_object_key,
           i -> 'spectral_lines' as spectral_lines,
           i -> 'outputs' as outputs,
           nullif(i -> 'software', 'null') as software,
           (i ->> 'is_embargoed')::boolean as is_embargoed,
           (i ->> 'embargo_end_date')::timestamptz as embargo_end_date,
           i ->> 'criteria_version' as criteria_version,
           i ->> 'inverted_by' as inverted_by,
           (i ->> 'inverted_at')::timestamptz as inverted_at,
           e.recorded_at as published_at,
           (select n ->> 'inversion_id' from l2inv.event p, jsonb_array_elements(p.detail -> 'inversions') n
            where p.op_id = e.op_id and p.kind = 'published'
                and n -> 'instrument_program_id' = i -> 'instrument_program_id'
                and (n ->> 'cycle')::integer > (i ->> 'cycle')::integer
                and not exists (select from l2inv.event w
                                where w.op_id = e.op_id and w.kind = 'withdrawn'
                                    and w.detail -> 'inversion_ids' ? (n ->> 'inversion_id'))
            order by (n ->> 'cycle')::integer limit 1) as superseded_by,
           (select min(w.recorded_at) from l2inv.event w
            where w.op_id = e.op_id and w.kind = 'withdrawn'
                and w.detail -> 'inversion_ids' ? (i ->> 'inversion_id')) as withdrawn_at
    from l2inv.event e, jsonb_array_elements(e.detail -> 'inversions') i
    where e.kind = 'published';

-- What supersedes a dataset: a newer one of the same product in its OP; of one that was withdrawn, any other.
create view l2inv.heir as
    select d.dataset_id, h.dataset_id as heir
    from l2inv.dataset d cross join lateral (
        select n.dataset_id from l2inv.dataset n
        where n.op_id = d.op_id and n.product_id = d.product_id and not n.withdrawn
            and (n.create_date > d.create_date or d.withdrawn)
        order by n.create_date desc, n.dataset_id limit 1
    ) h;

-- The records of the store that cannot be read, and are not gone from it.
create view l2inv.unresolved as
    select raw_hash, left(encode(raw_hash, 'hex'), 12) as key, dataset_id, reason, first_seen, last_seen, raw
    from l2inv.quarantine where resolved_at is null;

-- Why the OPs in error are there.
create view l2inv.failure as
    select s.op_id, s.since, e.detail ->> 'stage' as stage, e.detail ->> 'cause' as cause
    from l2inv.op_state s cross join lateral (
        select detail from l2inv.event
        where event.op_id = s.op_id and kind = 'failed' order by seq desc limit 1
    ) e
    where s.state = 'error';

-- What the instrument programs of OPs that are not invertible do not meet; margin is negative by what they fail.
create view l2inv.unmet as
    select s.op_id, p.number, p.program ->> 'instrument_program_id' as instrument_program_id, c ->> 'name' as name,
           c ->> 'result' = 'fail' as fails, c -> 'measured' as measured, c -> 'required' as required,
           case when jsonb_typeof(c -> 'measured') = 'number' and jsonb_typeof(c -> 'required') = 'number'
                then ((c ->> 'measured')::numeric - (c ->> 'required')::numeric)
                    * case c ->> 'name' when 'on_disk' then -1 else 1 end end as margin
    from l2inv.op_state s
    join l2inv.event v on v.op_id = s.op_id and v.seq = s.verdict_seq
    cross join jsonb_array_elements(v.detail -> 'verdict' -> 'instrument_programs') with ordinality as p (program, number)
    cross join jsonb_path_query(p.program, '$.criteria[*] ? (@.result <> "pass" && !(@.optional == true))') c
    where s.state = 'not_invertible';

-- The criteria that alone keep an OP's instrument program from passing, with the worst of its datasets; where that is so
-- of several programs, the nearest one.
create view l2inv.near_miss as
    select distinct on (name, op_id) name, op_id, instrument_program_id, measured, required, margin
    from (
        select op_id, number, instrument_program_id, min(name) as name, min(margin) as margin,
               (array_agg(measured order by coalesce(margin, 0)))[1] as measured,
               (array_agg(required order by coalesce(margin, 0)))[1] as required
        from l2inv.unmet group by op_id, number, instrument_program_id
        having min(name) = max(name) and bool_and(fails)
    ) program
    order by name, op_id, coalesce(margin, 0) desc, number;

-- What op_state should be by the events alone: to compare it with, and never read otherwise.
create view l2inv.op_state_by_events as
    select e.op_id, max(e.seq) as seq,
           (array_agg(e.state order by e.seq desc) filter (where e.state is not null))[1] as state,
           (array_agg(e.recorded_at order by e.seq desc) filter (where e.state is not null))[1] as since,
           case when (array_agg(e.state order by e.seq desc) filter (where e.state is not null))[1] = 'error'
                then (array_agg(e.state order by e.seq desc) filter (where e.state is not null))[2] end as state_before_error,
           max(e.seq) filter (where e.kind in ('discovered', 'reopened')
                              or e.kind = 'datasets_changed' and e.detail -> 'affects_verdict' = 'true') as datasets_seq,
           max(e.seq) filter (where e.kind = 'judged') as verdict_seq,
           (array_agg(e.detail ->> 'criteria_version' order by e.seq desc) filter (where e.kind = 'judged'))[1] as criteria_version,
           nullif(max(e.seq) filter (where e.kind in ('overruled', 'judged', 'reopened')
                                     or e.kind = 'datasets_changed' and e.detail -> 'affects_verdict' = 'true'),
                  max(e.seq) filter (where e.kind in ('judged', 'reopened')
                                     or e.kind = 'datasets_changed' and e.detail -> 'affects_verdict' = 'true')) as overruled_seq,
           (array_agg(e.detail ->> 'proposal_id' order by e.seq desc) filter (where e.detail ->> 'proposal_id' is not null))[1] as proposal_id,
           (array_agg(e.detail ->> 'experiment_id' order by e.seq desc) filter (where e.detail ->> 'experiment_id' is not null))[1] as experiment_id,
           coalesce((array_agg((e.detail ->> 'priority')::integer order by e.seq desc) filter (where e.kind = 'prioritized'))[1], 0) as priority,
           (array_agg(case when e.kind in ('claimed', 'handed_over', 'taken_over') then e.detail ->> 'assignee' end order by e.seq desc)
               filter (where e.kind in ('claimed', 'handed_over', 'taken_over', 'released', 'reopened')))[1] as assignee,
           (array_agg(case when e.kind in ('claimed', 'handed_over', 'taken_over', 'extended') then (e.detail ->> 'due_at')::timestamptz end
                      order by e.seq desc)
               filter (where e.kind in ('claimed', 'handed_over', 'taken_over', 'extended', 'released', 'inverted', 'reopened')))[1] as due_at,
           nullif(max(e.seq) filter (where e.kind in ('put_on_hold', 'taken_off_hold')),
                  max(e.seq) filter (where e.kind = 'taken_off_hold')) as on_hold_seq,
           (array_agg(e.hash order by e.seq desc))[1] as hash
    from l2inv.event e group by e.op_id;
