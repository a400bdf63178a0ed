-- What others read. Columns may be added at the end, never renamed or removed.

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
                    * case c ->> 'name' when 'on_disk' then -1 else 1 end
                when starts_with(c ->> 'name', 'band ') and jsonb_typeof(c -> 'measured') = 'array'  -- nm missing, of the nearest range
                then (select -min(greatest((r ->> 0)::numeric - coalesce(c -> 'required' ->> 0, c ->> 'required')::numeric, 0)
                                  + greatest(coalesce(c -> 'required' ->> 1, c ->> 'required')::numeric - (r ->> 1)::numeric, 0))
                      from jsonb_array_elements(c -> 'measured') r) end as margin
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
