-- What others read. Columns may be added at the end, never renamed or removed.

create view l2inv.op as
    select op_id, proposal_id, experiment_id, state, since, assignee, priority from l2inv.op_state;

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

-- What one chooses an OP by, for those who list OPs.
create view l2inv.op_overview as
    select s.op_id, s.proposal_id, s.experiment_id, s.state, s.since, s.priority, s.assignee,
           d.instruments, d.datasets, d.start_time, d.fried_parameter_med,
           coalesce(v.bands, '[]') as bands, coalesce(o.detail -> 'instrument_programs', v.instrument_programs, '[]') as instrument_programs,
           coalesce(s.datasets_seq > s.verdict_seq, false) as inputs_changed, s.overruled_seq is not null as overruled
    from l2inv.op_state s
    left join lateral (
        select coalesce(array_agg(distinct instrument) filter (where instrument is not null), '{}') as instruments,
               count(*) as datasets,
               min(start_time) as start_time,
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

-- What the metadata store aggregates: one row for each inversion that it was told of.
create view l2inv.published_op as
    select e.event_id, e.op_id, (i ->> 'cycle')::integer as cycle,
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
           null::text as superseded_by,
           null::timestamptz as withdrawn_at
    from l2inv.event e, jsonb_array_elements(e.detail -> 'inversions') i
    where e.kind = 'published';

create index event_published on l2inv.event (event_id) where kind = 'published';
