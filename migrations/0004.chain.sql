-- Tamper evidence: each event carries a hash over its content and the hash of the event before it in its OP, so that
-- whoever gets around the triggers cannot change, remove or insert one unseen. `l2inv verify` computes it again.

alter table l2inv.event add hash bytea;
alter table l2inv.op_state add hash bytea;  -- of the newest event

-- Times as seconds since 1970: how they read must not depend on the session's time zone.
create function l2inv.event_hash(previous_hash bytea, event_id bigint, op_id text, seq integer, kind text, state text,
                                 actor text, recorded_at timestamptz, run_id bigint, detail jsonb)
returns bytea language sql stable parallel safe as $$
    select sha256(convert_to(jsonb_build_array(encode(previous_hash, 'hex'), event_id, op_id, seq, kind, state, actor,
                                               extract(epoch from recorded_at), run_id, detail)::text, 'UTF8'))
$$;

-- Whatever hash an INSERT names: the one of the content is kept. Several events of one OP in one INSERT come in order.
create function l2inv.chain_event() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    previous_hash bytea;
begin
    if new.seq > 1 then
        select e.hash into previous_hash from l2inv.event e where e.op_id = new.op_id and e.seq = new.seq - 1;
    end if;
    new.hash := l2inv.event_hash(previous_hash, new.event_id, new.op_id, new.seq, new.kind, new.state, new.actor,
                                 new.recorded_at, new.run_id, new.detail);
    return new;
end $$;

-- The events that are there already, one after the other within each OP.
alter table l2inv.event disable trigger append_only;
alter table l2inv.op_state disable trigger derived_only;
do $$
declare
    this_seq integer := 0;
begin
    loop
        this_seq := this_seq + 1;
        update l2inv.event e
            set hash = l2inv.event_hash((select p.hash from l2inv.event p where p.op_id = e.op_id and p.seq = e.seq - 1),
                                        e.event_id, e.op_id, e.seq, e.kind, e.state, e.actor, e.recorded_at, e.run_id, e.detail)
            where e.seq = this_seq;
        exit when not found;
    end loop;
end $$;
update l2inv.op_state s
    set hash = (select e.hash from l2inv.event e where e.op_id = s.op_id and e.seq = s.seq);
alter table l2inv.op_state enable always trigger derived_only;
alter table l2inv.event enable always trigger append_only;
alter table l2inv.event alter hash set not null;

create trigger chain_event before insert on l2inv.event for each row execute function l2inv.chain_event();
alter table l2inv.event enable always trigger chain_event;

-- What guards the record obeys no search_path of whoever writes.
alter function l2inv.refuse_change() set search_path = pg_catalog, pg_temp;

-- op_state follows the events as its owner (follow_events): nobody else writes it, at whatever depth of triggers.
create or replace function l2inv.refuse_direct_write() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $$
begin
    if pg_trigger_depth() < 2 or current_user <> (select pg_get_userbyid(relowner) from pg_class where oid = tg_relid) then
        raise exception '%.% follows the events: % is refused', tg_table_schema, tg_table_name, tg_op
            using errcode = 'L2INV', hint = 'record an event; it takes the state with it';
    end if;
    return null;
end $$;
