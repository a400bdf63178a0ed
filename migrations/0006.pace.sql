-- What somebody holds is found without reading what everybody holds.
create index op_state_assignee on l2inv.op_state (assignee) where assignee is not null;

-- One statement follows the events, where there were three: what is not allowed is refused while it is read.

create function l2inv.refuse_event(op_id text, kind text, from_state text, to_state text, is_allowed boolean)
returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not is_allowed then
        raise exception 'OP % in state % allows no event % to state %', op_id,
            coalesce(from_state, '(unknown)'), kind, coalesce(to_state, '(unchanged)')
            using errcode = 'L2INV', hint = 'see the states in README.md';
    end if;
    raise exception 'OP %: no event % now: %', op_id, kind,
        case kind when 'claimed' then 'it is on hold' else 'the claim is not overdue' end
        using errcode = 'L2INV', hint = 'see: l2inv show OP';
end $$;

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
            where case when e.seq <> coalesce(s.seq, 0) + 1 then false
                       when not l2inv.is_allowed(e.kind, s.state, e.state, s.state_before_error)
                            then l2inv.refuse_event(e.op_id, e.kind, s.state, e.state, false)
                       when e.kind = 'claimed' and s.on_hold_seq is not null
                            or e.kind = 'taken_over' and s.due_at > e.recorded_at
                            then l2inv.refuse_event(e.op_id, e.kind, s.state, e.state, true)
                       else true end
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
                order by e.seq <= coalesce(s.seq, 0), e.op_id, e.seq limit 1;
            raise exception 'OP %: event % is out of sequence, the next is %', wrong.op_id, wrong.seq, wrong.next_seq
                using errcode = 'L2INV', hint = 'sequence numbers start at 1 and have no holes';
        end if;
        followed := followed + this_time;
    end loop;
    return null;
end $$;
