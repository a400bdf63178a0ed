-- The views for readers: op, dataset, published_op, history and runs. Columns may be added at the end, never renamed or
-- removed.

-- Each dataset's newest version.
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

-- Each OP's present state. A withdrawn dataset gives its proposal and experiment only if no other one does.
create view l2inv.op as
    select s.op_id, d.proposal_id, d.experiment_id, s.state, s.since, s.assignee, s.priority, s.due_at,
           s.on_hold_seq is not null as on_hold, s.cycle,
           d.dataset_count, d.instruments, d.start_time, d.fried_parameter_med_m, d.is_embargoed,
           coalesce(v.bands, '[]') as bands,
           coalesce((select o.detail -> 'instrument_programs' from l2inv.event o
                     where o.op_id = s.op_id and o.seq = s.overruled_seq),
                    v.instrument_programs, '[]') as instrument_programs,
           coalesce(s.datasets_seq > s.verdict_seq, false)
               and not exists (select from l2inv.event e
                               where e.op_id = s.op_id and e.seq = s.datasets_seq and e.kind = 'reopened') as inputs_changed,
           s.overruled_seq is not null as overruled
    from l2inv.op_state s
    left join lateral (
        select (array_agg(proposal_id order by withdrawn, recorded_at desc, dataset_id)
                    filter (where proposal_id is not null))[1] as proposal_id,
               (array_agg(record ->> 'primaryExperimentId' order by withdrawn, recorded_at desc, dataset_id)
                    filter (where record ? 'primaryExperimentId'))[1] as experiment_id,
               count(*) filter (where not withdrawn) as dataset_count,
               coalesce(array_agg(distinct instrument) filter (where not withdrawn and instrument is not null), '{}')
                    as instruments,
               min(start_time) filter (where not withdrawn) as start_time,
               percentile_cont(0.5) within group (order by fried_parameter_med_m) filter (where not withdrawn)
                    as fried_parameter_med_m,
               coalesce(bool_or((record ->> 'isEmbargoed')::boolean) filter (where not withdrawn), false) as is_embargoed
        from l2inv.dataset where dataset.op_id = s.op_id
    ) d on true
    left join lateral (
        select (select jsonb_agg(distinct substr(name #>> '{}', 6)) from jsonb_path_query(e.detail,
                    '$.verdict.instrument_programs[*].criteria[*]
                        ? (@.name starts with "band " && @.result == "pass").name') name) as bands,
               (select jsonb_agg(distinct id) from jsonb_path_query(e.detail,
                    '$.verdict.instrument_programs[*] ? (@.invertible == true).instrument_program_id') id)
                    as instrument_programs
        from l2inv.event e where e.op_id = s.op_id and e.seq = s.verdict_seq
    ) v on true;

-- Every event. voided_by is the seq of the event by which the owner of the schema declared it void.
create view l2inv.history as
    select e.event_id, e.op_id, e.seq, e.kind, e.state, e.actor, e.recorded_at, e.run_id, e.detail, e.recorded_by,
           encode(e.hash, 'hex') as hash,
           (select min(v.seq) from l2inv.event v
            where v.op_id = e.op_id and v.kind = 'voided' and v.detail -> 'seq' = to_jsonb(e.seq)) as voided_by
    from l2inv.event e;

-- Every run of a stage.
create view l2inv.runs as
    select run_id, stage, actor, started_at, finished_at, result from l2inv.run;

-- Each inversion that was published, and each that was withdrawn although it was not: its cycle ended before, but the store
-- has it. Void events are not read: they may contain anything.
create view l2inv.inversion as
    select h.op_id, t.published_at, t.told, (t.told ->> 'cycle')::integer as cycle,
           t.told ->> 'inversion_id' as inversion_id, t.told ->> 'instrument_program_id' as instrument_program_id,
           (select case w.kind when 'withdrawn' then w.recorded_at end from l2inv.history w
            where w.op_id = h.op_id and w.kind in ('withdrawn', 'reinstated') and w.voided_by is null
                and w.detail -> 'inversion_ids' ? (t.told ->> 'inversion_id')
            order by w.seq desc limit 1) as withdrawn_at
    from l2inv.history h
    cross join lateral (
        select h.recorded_at as published_at, i as told
        from jsonb_array_elements(case when h.kind = 'published' and h.voided_by is null
                                       then h.detail -> 'inversions' else '[]' end) i
        union all
        select null, n.detail
        from jsonb_array_elements_text(case when h.kind = 'withdrawn' and h.voided_by is null
                                            then h.detail -> 'inversion_ids' else '[]' end) i (inversion_id)
        cross join lateral (
            select detail from l2inv.history
            where op_id = h.op_id and kind = 'inversion_named' and voided_by is null
                and detail ->> 'inversion_id' = i.inversion_id
            order by seq desc limit 1
        ) n
        where not exists (
            select from l2inv.history p
            where p.op_id = h.op_id and p.voided_by is null
                and (p.kind = 'published' and p.detail -> 'inversions' @> jsonb_build_array(
                         jsonb_build_object('inversion_id', i.inversion_id))
                     or p.kind = 'withdrawn' and p.seq < h.seq and p.detail -> 'inversion_ids' ? i.inversion_id))
    ) t
    where h.kind in ('published', 'withdrawn');

-- What the metadata store aggregates: one row for each inversion that was sent to it. event_id is that of the newest event
-- about the OP's inversions, so that a reader who continues after the last event_id finds changed rows like new ones.
create view l2inv.published_op as
    select (select max(t.event_id) from l2inv.event t
            where t.op_id = i.op_id
                and t.kind in ('published', 'withdrawn', 'reinstated', 'restored', 'voided')) as event_id,
           i.op_id, i.cycle, i.inversion_id,
           told ->> 'proposal_id' as proposal_id,
           told ->> 'experiment_id' as experiment_id,
           i.instrument_program_id,
           told -> 'dataset_ids' as dataset_ids,
           told -> 'product_ids' as product_ids,
           told ->> 'bucket' as bucket,
           told ->> 'asdf_object_key' as asdf_object_key,
           told -> 'spectral_lines' as spectral_lines,
           told -> 'outputs' as outputs,
           nullif(told -> 'software', 'null') as software,
           (told ->> 'is_embargoed')::boolean as is_embargoed,
           (told ->> 'embargo_end_date')::timestamptz as embargo_end_date,
           told ->> 'criteria_version' as criteria_version,
           told ->> 'inverted_by' as inverted_by,
           (told ->> 'inverted_at')::timestamptz as inverted_at,
           i.published_at,
           (select n.inversion_id from l2inv.inversion n
            where n.op_id = i.op_id and n.instrument_program_id = i.instrument_program_id and n.cycle > i.cycle
                and n.withdrawn_at is null
            order by n.cycle limit 1) as superseded_by,
           i.withdrawn_at
    from l2inv.inversion i;

-- The dataset that supersedes another: a newer one of the same product in the same OP; for a withdrawn one, any other.
create view l2inv.heir as
    select d.dataset_id, h.dataset_id as heir
    from l2inv.dataset d cross join lateral (
        select n.dataset_id from l2inv.dataset n
        where n.op_id = d.op_id and n.product_id = d.product_id and not n.withdrawn
            and (n.create_date > d.create_date or d.withdrawn)
        order by n.create_date desc, n.dataset_id limit 1
    ) h;

-- The records that cannot be read and that the store still has.
create view l2inv.unresolved as
    select raw_hash, left(encode(raw_hash, 'hex'), 12) as key, dataset_id, reason, first_seen, last_seen, raw, is_second
    from l2inv.quarantine where resolved_at is null;

-- Why OPs are in error.
create view l2inv.failure as
    select s.op_id, s.since, e.detail ->> 'stage' as stage, e.detail ->> 'cause' as cause,
           e.detail -> 'attempt' as attempt
    from l2inv.op_state s cross join lateral (
        select detail from l2inv.event
        where event.op_id = s.op_id and kind = 'failed' order by seq desc limit 1
    ) e
    where s.state = 'error';
