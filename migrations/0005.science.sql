-- Science's side: claims with a due date, hand-over, hold, jobs that outlive their run, further cycles of an OP.

alter table l2inv.event
    add check (kind not in ('handed_over', 'taken_over') or coalesce(detail ->> 'assignee', '') <> ''),
    add check (kind not in ('taken_over', 'extended') or detail ->> 'due_at' is not null),
    add check (kind <> 'withdrawn' or jsonb_typeof(detail -> 'inversion_ids') is not distinct from 'array'),
    add check (kind not in ('taken_over', 'put_on_hold', 'reopened', 'withdrawn') or coalesce(detail ->> 'reason', '') <> '');

alter table l2inv.op_state
    add due_at      timestamptz,  -- of the claim
    add on_hold_seq integer;      -- of the event that put it on hold, until it is taken off

create index event_told on l2inv.event (op_id, event_id) where kind in ('published', 'withdrawn');
create index event_told_after on l2inv.event (event_id) where kind in ('published', 'withdrawn');
drop index l2inv.event_published;  -- the two do its work
-- So that the newest job of an OP is found without reading its history.
create index event_job on l2inv.event (op_id, seq) where kind = 'preprocess_started';
create index event_named on l2inv.event ((detail ->> 'inversion_id')) where kind = 'inversion_named';

create or replace function l2inv.is_allowed(kind text, from_state text, to_state text, state_before_error text)
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
        when 'preprocessed' then from_state = 'invertible' and to_state = 'preprocessed'
        when 'preprocess_started' then from_state = 'invertible' and to_state is null
        when 'claimed' then from_state = 'preprocessed' and to_state = 'working'
        when 'released' then from_state = 'working' and to_state = 'preprocessed'
        when 'handed_over' then from_state = 'working' and to_state is null
        when 'taken_over' then from_state = 'working' and to_state is null
        when 'extended' then from_state = 'working' and to_state is null
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

create or replace function l2inv.follow_events() returns trigger language plpgsql
    security definer set search_path = pg_catalog, pg_temp set work_mem = '64MB' as $$
declare
    wrong     record;
    expected  bigint;
    followed  bigint := 0;
    this_time bigint;
begin
    select count(*) into expected from new_event;
    -- One round takes each OP's next event, so that several events of one OP in one INSERT follow each other.
    while followed < expected loop
        select e.op_id, e.kind, s.state as from_state, e.state as to_state into wrong
            from new_event e left join l2inv.op_state s using (op_id)
            where e.seq = coalesce(s.seq, 0) + 1
                and not l2inv.is_allowed(e.kind, s.state, e.state, s.state_before_error)
            limit 1;
        if found then
            raise exception 'OP % in state % allows no event % to state %', wrong.op_id,
                coalesce(wrong.from_state, '(unknown)'), wrong.kind, coalesce(wrong.to_state, '(unchanged)')
                using errcode = 'L2INV', hint = 'see the states in README.md';
        end if;

        select e.op_id, e.kind into wrong
            from new_event e join l2inv.op_state s using (op_id)
            where e.seq = s.seq + 1
                and (e.kind = 'claimed' and s.on_hold_seq is not null
                     or e.kind = 'taken_over' and s.due_at > e.recorded_at)
            limit 1;
        if found then
            raise exception 'OP %: no event % now: %', wrong.op_id, wrong.kind,
                case wrong.kind when 'claimed' then 'it is on hold' else 'the claim is not overdue' end
                using errcode = 'L2INV', hint = 'see: l2inv show OP';
        end if;

        insert into l2inv.op_state as s (op_id, seq, state, since, state_before_error, datasets_seq, verdict_seq,
                                         criteria_version, overruled_seq, proposal_id, experiment_id, assignee, due_at,
                                         on_hold_seq, hash, priority)
            select e.op_id, e.seq, coalesce(e.state, s.state),
                   case when e.state is null then s.since else e.recorded_at end,
                   case when e.state is null then s.state_before_error when e.state = 'error' then s.state end,
                   case when e.kind in ('discovered', 'reopened') or e.kind = 'datasets_changed'
                             and e.detail -> 'affects_verdict' = 'true' then e.seq else s.datasets_seq end,
                   case when e.kind = 'judged' then e.seq else s.verdict_seq end,
                   case when e.kind = 'judged' then e.detail ->> 'criteria_version' else s.criteria_version end,
                   case when e.kind = 'overruled' then e.seq
                        when e.kind in ('judged', 'reopened') then null
                        when e.kind = 'datasets_changed' and e.detail -> 'affects_verdict' = 'true' then null
                        else s.overruled_seq end,
                   coalesce(e.detail ->> 'proposal_id', s.proposal_id),
                   coalesce(e.detail ->> 'experiment_id', s.experiment_id),
                   case when e.kind in ('claimed', 'handed_over', 'taken_over') then e.detail ->> 'assignee'
                        when e.kind in ('released', 'reopened') then null
                        else s.assignee end,
                   case when e.kind in ('claimed', 'handed_over', 'taken_over', 'extended')
                             then (e.detail ->> 'due_at')::timestamptz
                        when e.kind in ('released', 'inverted', 'reopened') then null
                        else s.due_at end,
                   case e.kind when 'put_on_hold' then e.seq when 'taken_off_hold' then null else s.on_hold_seq end,
                   e.hash,
                   case when e.kind = 'prioritized' then (e.detail ->> 'priority')::integer
                        else coalesce(s.priority, 0) end
            from new_event e left join l2inv.op_state s using (op_id)
            where e.seq = coalesce(s.seq, 0) + 1
        on conflict (op_id) do update set
            seq = excluded.seq, state = excluded.state, since = excluded.since,
            state_before_error = excluded.state_before_error, datasets_seq = excluded.datasets_seq,
            verdict_seq = excluded.verdict_seq, criteria_version = excluded.criteria_version, overruled_seq = excluded.overruled_seq,
            proposal_id = excluded.proposal_id, experiment_id = excluded.experiment_id,
            assignee = excluded.assignee, due_at = excluded.due_at, on_hold_seq = excluded.on_hold_seq,
            hash = excluded.hash, priority = excluded.priority;
        get diagnostics this_time = row_count;

        if this_time = 0 then
            select e.op_id, e.seq, coalesce(s.seq, 0) + 1 as next_seq into wrong
                from new_event e left join l2inv.op_state s using (op_id)
                where e.seq > coalesce(s.seq, 0) order by e.op_id, e.seq limit 1;
            raise exception 'OP %: event % is out of sequence, the next is %', wrong.op_id, wrong.seq, wrong.next_seq
                using errcode = 'L2INV', hint = 'sequence numbers start at 1 and have no holes';
        end if;
        followed := followed + this_time;
    end loop;
    return null;
end $$;

create or replace view l2inv.op as
    select op_id, proposal_id, experiment_id, state, since, assignee, priority, due_at, on_hold_seq is not null as on_hold
    from l2inv.op_state;

create or replace view l2inv.op_overview as
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
create or replace view l2inv.published_op as
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
