-- The record: every state an observing program (OP) was in, kept for ever.

create table l2inv.event (
    event_id    bigint generated always as identity primary key,
    op_id       text collate "C" not null check (op_id <> '' and length(op_id) <= 200),
    seq         integer not null,
    kind        text not null,
    state       text check (state in ('discovered', 'invertible', 'not_invertible', 'preprocessed',
                                      'working', 'inverted', 'published', 'error')),
    actor       text not null check (actor <> ''),
    recorded_at timestamptz not null default clock_timestamp(),
    run_id      bigint,  -- no foreign key: an event outlives all that it names
    detail      jsonb not null default '{}' check (jsonb_typeof(detail) = 'object'),
    unique (op_id, seq),
    check (kind <> 'prioritized' or jsonb_typeof(detail -> 'priority') is not distinct from 'number'),
    check (kind <> 'claimed' or coalesce(detail ->> 'assignee', '') <> '')
);

comment on table l2inv.event is 'Append-only: what happened to each OP, in order; state is null where the state stayed';

create function l2inv.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, tg_op
        using errcode = 'L2INV', hint = 'information is only ever added; record a new event';
end $$;

create trigger append_only before update or delete or truncate on l2inv.event
    for each statement execute function l2inv.refuse_change();
alter table l2inv.event enable always trigger append_only;  -- whatever session_replication_role says

-- Which event may happen to an OP in which state. l2inv/domain/states.py says the same in Python; a test compares the two
-- over every combination.
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
        when 'preprocessed' then from_state = 'invertible' and to_state = 'preprocessed'
        when 'claimed' then from_state = 'preprocessed' and to_state = 'working'
        when 'released' then from_state = 'working' and to_state = 'preprocessed'
        when 'inverted' then from_state = 'working' and to_state = 'inverted'
        when 'inversion_named' then from_state = 'inverted' and to_state is null
        when 'inversion_created' then from_state = 'inverted' and to_state is null
        when 'published' then from_state = 'inverted' and to_state = 'published'
        when 'prioritized' then from_state is not null and to_state is null
        when 'noted' then from_state is not null and to_state is null
        when 'failed' then from_state not in ('error', 'published') and to_state = 'error'
        when 'retried' then from_state = 'error' and to_state = state_before_error
    end, false)
$$;

-- Each OP's present state: a cache of what the events say, kept in the same transaction as they are.
create table l2inv.op_state (
    op_id              text collate "C" primary key,
    seq                integer not null,      -- of the newest event
    state              text not null,
    since              timestamptz not null,
    state_before_error text,
    datasets_seq       integer not null,      -- of the newest event that a verdict depends on
    verdict_seq        integer,               -- of the newest verdict
    criteria_version   text,                  -- of the newest verdict
    overruled_seq      integer,               -- of the event that overrules the newest verdict, until its data change
    proposal_id        text,
    experiment_id      text,
    priority           integer not null default 0,
    assignee           text
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01);

create index op_state_state on l2inv.op_state (state);
create index op_state_ready on l2inv.op_state (priority desc, since, op_id) where state = 'preprocessed';

comment on table l2inv.op_state is 'Derived from l2inv.event by its trigger; never written otherwise';

create function l2inv.follow_events() returns trigger language plpgsql set work_mem = '64MB' as $$
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

        insert into l2inv.op_state as s (op_id, seq, state, since, state_before_error, datasets_seq, verdict_seq,
                                         criteria_version, overruled_seq, proposal_id, experiment_id, assignee, priority)
            select e.op_id, e.seq, coalesce(e.state, s.state),
                   case when e.state is null then s.since else e.recorded_at end,
                   case when e.state is null then s.state_before_error when e.state = 'error' then s.state end,
                   case when e.kind = 'discovered' or e.kind = 'datasets_changed'
                             and e.detail -> 'affects_verdict' = 'true' then e.seq else s.datasets_seq end,
                   case when e.kind = 'judged' then e.seq else s.verdict_seq end,
                   case when e.kind = 'judged' then e.detail ->> 'criteria_version' else s.criteria_version end,
                   case when e.kind = 'overruled' then e.seq
                        when e.kind = 'judged' then null
                        when e.kind = 'datasets_changed' and e.detail -> 'affects_verdict' = 'true' then null
                        else s.overruled_seq end,
                   coalesce(e.detail ->> 'proposal_id', s.proposal_id),
                   coalesce(e.detail ->> 'experiment_id', s.experiment_id),
                   case e.kind when 'claimed' then e.detail ->> 'assignee' when 'released' then null
                        else s.assignee end,
                   case when e.kind = 'prioritized' then (e.detail ->> 'priority')::integer
                        else coalesce(s.priority, 0) end
            from new_event e left join l2inv.op_state s using (op_id)
            where e.seq = coalesce(s.seq, 0) + 1
        on conflict (op_id) do update set
            seq = excluded.seq, state = excluded.state, since = excluded.since,
            state_before_error = excluded.state_before_error, datasets_seq = excluded.datasets_seq,
            verdict_seq = excluded.verdict_seq, criteria_version = excluded.criteria_version, overruled_seq = excluded.overruled_seq,
            proposal_id = excluded.proposal_id, experiment_id = excluded.experiment_id,
            assignee = excluded.assignee, priority = excluded.priority;
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

-- The trigger above is the only writer: whoever else writes is at depth 1.
create function l2inv.refuse_direct_write() returns trigger language plpgsql as $$
begin
    if pg_trigger_depth() < 2 then
        raise exception '%.% follows the events: % is refused', tg_table_schema, tg_table_name, tg_op
            using errcode = 'L2INV', hint = 'record an event; it takes the state with it';
    end if;
    return null;
end $$;

create trigger derived_only before insert or update or delete or truncate on l2inv.op_state
    for each statement execute function l2inv.refuse_direct_write();
alter table l2inv.op_state enable always trigger derived_only;

create trigger follow_events after insert on l2inv.event
    referencing new table as new_event for each statement execute function l2inv.follow_events();
alter table l2inv.event enable always trigger follow_events;
