-- The schema of l2inv's database after all migrations, to be read. What makes it are the files of migrations/.
-- Written by `python -m tests.schema`; a test fails when it is stale.

set check_function_bodies = off;  -- functions name tables that come after them

-- Functions

-- Which kinds of event an OP may have in which state. l2inv/domain/states.py has the same table in Python; a test compares
-- the two for every combination.
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
        when 'amended' then from_state = 'inverted' and to_state is null
        when 'resumed' then from_state = 'inverted' and to_state = 'working'
        when 'transfer_started' then from_state = 'inverted' and to_state is null
        when 'transferred' then from_state = 'inverted' and to_state is null
        when 'cataloged' then from_state = 'inverted' and to_state is null
        when 'inversion_named' then from_state = 'inverted' and to_state is null
        when 'inversion_created' then from_state is not null and to_state is null
        when 'published' then from_state = 'inverted' and to_state = 'published'
        when 'reopened' then from_state in ('inverted', 'published') and to_state = 'discovered'
        when 'withdrawn' then from_state is not null and to_state is null
        when 'reinstated' then from_state is not null and to_state is null
        when 'cleaned' then from_state = 'published' and to_state is null
        when 'put_on_hold' then from_state is not null and to_state is null
        when 'taken_off_hold' then from_state is not null and to_state is null
        when 'prioritized' then from_state is not null and to_state is null
        when 'noted' then from_state is not null and to_state is null
        when 'failed' then from_state not in ('error', 'published') and to_state = 'error'
        when 'retried' then from_state = 'error' and to_state = state_before_error
        when 'restored' then from_state is not null and to_state is null
        when 'voided' then from_state is not null and to_state is null
    end, false)
$$;

revoke all on function l2inv.is_allowed(text,text,text,text) from public;

-- The keys that the detail of each kind of event must have because views, triggers or commands rely on them, with their
-- types as in l2inv.fits. KEY? may be missing. Other keys are allowed.
create function l2inv.shape(name text) returns jsonb language plpgsql immutable parallel safe as $$
begin
    return case name
        when 'discovered' then '{"datasets?": "name[]", "versions?": "pin{}"}'
        when 'datasets_changed' then '{"affects_verdict?": "flag", "new?": "name[]", "changed?": "fields{}",
            "left?": "name[]", "withdrawn?": "name?{}", "versions?": "pin{}"}'
        when 'judged' then '{"criteria_version": "name", "verdict": "verdict", "datasets": "whole{}"}'
        when 'overruled' then '{"invertible": "flag", "instrument_programs": "name?[]", "reason": "name"}'
        when 'preprocess_started' then '{"executor": "name", "job": "job", "task": "whole?", "folder": "name",
            "command": "argv", "attempt": "whole", "after?": "text?"}'
        when 'preprocessed' then '{"folder?": "name?", "files?": "file[]", "seconds?": "number"}'
        when 'claimed' then '{"assignee": "name", "due_at?": "time?", "inversions?": "issued[]"}'
        when 'extended' then '{"assignee": "name", "due_at": "time"}'
        when 'handed_over' then '{"assignee": "name", "from": "name", "due_at?": "time?"}'
        when 'taken_over' then '{"assignee": "name", "from": "name", "due_at": "time", "reason": "name"}'
        when 'released' then '{"assignee": "name"}'
        when 'inverted' then '{"instrument_programs": "name?[]", "datasets": "name?{}", "outputs": "output[]",
            "lines": "name[]", "software": "software?", "asdf_object_key": "text?", "criteria_version": "text?",
            "inverted_by": "name", "inverted_at": "time", "accepted?": "accepted", "inversions?": "issued[]"}'
        when 'resumed' then '{"assignee": "name", "due_at?": "time?"}'
        when 'transfer_started' then '{"cycle": "whole", "inversion_id": "name", "move": "move", "executor": "name",
            "job": "job", "task": "whole?", "folder": "name", "command": "argv", "attempt?": "whole"}'
        when 'transferred' then '{"cycle": "whole", "inversion_id": "name"}'
        when 'cataloged' then '{"cycle": "whole", "inversion_id": "name", "conversation_id": "name", "files": "name[]"}'
        when 'inversion_created' then '{"cycle": "whole", "inversion_id": "name", "instrument_program_id": "name"}'
        when 'published' then '{"inversions": "inversion[]"}'
        when 'reopened' then '{"cycle": "whole", "reason": "name"}'
        when 'withdrawn' then '{"inversion_ids": "name[]", "reason": "name"}'
        when 'reinstated' then '{"inversion_ids": "name[]", "reason": "name"}'
        when 'cleaned' then '{"folder": "name", "files": "count", "bytes": "count"}'
        when 'put_on_hold' then '{"reason": "name"}'
        when 'taken_off_hold' then '{}'
        when 'prioritized' then '{"priority": "whole", "reason": "name"}'
        when 'noted' then '{"note": "text", "beside?": "name[]"}'
        when 'failed' then '{"stage": "name", "cause": "text", "attempt": "whole"}'
        when 'retried' then '{}'
        when 'restored' then '{"file": "name"}'
        when 'voided' then '{"seq": "whole", "reason": "name"}'

        when 'inversion' then '{"cycle": "whole", "inversion_id": "name", "instrument_program_id": "name",
            "proposal_id": "name?", "experiment_id": "name?", "dataset_ids": "name[]", "product_ids": "name[]",
            "bucket": "name?", "asdf_object_key": "text?", "spectral_lines": "name[]", "outputs": "output[]",
            "software": "software?", "is_embargoed": "flag", "embargo_end_date": "time?",
            "criteria_version": "text?", "inverted_by": "name", "inverted_at": "time"}'
        when 'issued' then '{"inversion_id": "name", "instrument_program_id": "name", "datasets?": "name[]",
            "outputs?": "output[]", "lines?": "name[]", "asdf_object_key?": "text?"}'
        when 'move' then '{"source": "name", "bucket": "name", "destination": "name"}'
        when 'output' then '{"uri": "name", "size_bytes?": "count", "sha256?": "text"}'
        when 'software' then '{"name": "name", "version?": "text?"}'
        when 'accepted' then '{"superseded": "text{}", "reason": "text?"}'
        when 'file' then '{"path": "name", "size_bytes": "count", "sha256": "text"}'

        when 'report' then '{"failed?": "text", "ops?": "count{}", "datasets?": "count{}", "profile?": "profile",
            "sent?": "flag?{}"}'
        when 'profile' then '{"datasets": "count", "given": "count{}", "log10_medians": "number{}"}'
    end;
end $$;

revoke all on function l2inv.shape(text) from public;

-- Whether a value has a type: a simple one, the name of a shape above, TYPE[] (an array), TYPE{} (an object whose values
-- have the type, under any keys) or TYPE? (may be null).
create function l2inv.fits(given jsonb, type text) returns boolean language plpgsql stable parallel safe as $$
declare
    fits  boolean;
    shape jsonb;
begin
    fits := case type
        when 'text' then jsonb_typeof(given) = 'string'
        when 'name' then jsonb_typeof(given) = 'string' and given <> '""'
        when 'flag' then jsonb_typeof(given) = 'boolean'
        when 'number' then jsonb_typeof(given) = 'number'  -- within the range of floating point
            and (given::numeric = 0 or abs(given::numeric) between 4.95e-324 and 1.7976931348623157e308)
        when 'whole' then jsonb_typeof(given) = 'number' and given::text ~ '^-?[0-9]{1,9}$'
        when 'count' then jsonb_typeof(given) = 'number' and given::text ~ '^[0-9]{1,15}$'
        when 'job' then jsonb_typeof(given) = 'string' and given::text ~ '^"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"$'
        when 'pin' then jsonb_typeof(given) = 'string' and given::text ~ '^"[0-9]{1,9}:[0-9a-f]{16}"$'
        when 'time' then jsonb_typeof(given) = 'string'
            and given::text ~ ('^"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]'
                               || '([.][0-9]{1,6})?(Z|[+]00:00)"$')
            and (given #>> '{}')::timestamptz is not null  -- refuses a date that does not exist, such as February 30
        -- A scan records these by the hundred thousand: check them as a whole, not item by item.
        when 'text[]' then jsonb_typeof(given) = 'array' and not given @? 'strict $[*] ? (@.type() != "string")'
        when 'name[]' then jsonb_typeof(given) = 'array'
            and not given @? 'strict $[*] ? (@.type() != "string" || @ == "")'
        when 'pin{}' then jsonb_typeof(given) = 'object'
            and not given @? 'strict $.* ? (@.type() != "string" || !(@ like_regex "^[0-9]{1,9}:[0-9a-f]{16}$"))'
        when 'argv' then l2inv.fits(given, 'text[]') and given <> '[]'
        when 'fields' then l2inv.fits(given, 'text[]') or jsonb_typeof(given) = 'object'
        when 'verdict' then given @@ '
            $.invertible.type() == "boolean" && $.undetermined.type() == "boolean"
            && $.instrument_programs.type() == "array"
            && !exists($.instrument_programs[*].type() ? (@ != "object"))
            && !exists($.instrument_programs[*] ? (!(@.invertible.type() == "boolean" && @.criteria.type() == "array"
                && (@.instrument_program_id.type() == "string" || @.instrument_program_id.type() == "null"))))
            && !exists($.instrument_programs[*].criteria[*].type() ? (@ != "object"))
            && !exists($.instrument_programs[*].criteria[*] ? (!(
                @.name.type() == "string" && exists(@.measured) && exists(@.required)
                && @.measured.type() != "boolean" && @.measured.type() != "object"
                && @.required.type() != "boolean" && @.required.type() != "object"
                && @.result.type() == "string" && (@.result == "pass" || @.result == "fail" || @.result == "unknown")
                && (@.dataset_id.type() == "string" || @.dataset_id.type() == "null")
                && (!exists(@.optional) || @.optional.type() == "boolean"))))'
    end;
    if fits is not null then
        return fits;
    elsif type like '%?' then
        return given = 'null' or l2inv.fits(given, left(type, -1));
    elsif type like '%[]' then
        return jsonb_typeof(given) = 'array' and not exists (
            select from jsonb_array_elements(given) e where not l2inv.fits(e, left(type, -2)));
    elsif type like '%{}' then
        return jsonb_typeof(given) = 'object' and not exists (
            select from jsonb_each(given) e where not l2inv.fits(e.value, left(type, -2)));
    end if;
    shape := l2inv.shape(type);
    return shape is not null and jsonb_typeof(given) = 'object' and not exists (
        select from jsonb_each_text(shape) as s (key, type)
        where not case when given ? rtrim(s.key, '?') then l2inv.fits(given -> rtrim(s.key, '?'), s.type)
                  else s.key like '%?' end);
end $$;

revoke all on function l2inv.fits(jsonb,text) from public;

-- Whether any reader can parse a document: at most 32 levels deep, and no number beyond the range of floating point.
create function l2inv.is_readable(document jsonb) returns boolean language sql immutable parallel safe as $$
    select not document @? '$.**{32}' and not document @?
        '$.** ? (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308)'
$$;

revoke all on function l2inv.is_readable(jsonb) from public;

-- Whether a detail is valid for its kind of event.
create function l2inv.detail_fits(kind text, detail jsonb) returns boolean language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp as $$
begin
    return l2inv.is_readable(detail) and l2inv.fits(
        detail, case kind when 'amended' then 'inverted' when 'inversion_named' then 'inversion' else kind end);
end $$;

revoke all on function l2inv.detail_fits(text,jsonb) from public;

-- Whether a run's report has what commands and later runs rely on.
create function l2inv.report_fits(report jsonb) returns boolean language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp as $$
begin
    return l2inv.is_readable(report) and l2inv.fits(report, 'report');
end $$;

revoke all on function l2inv.report_fits(jsonb) from public;

create function l2inv.refuse_change() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, tg_op
        using errcode = 'L2INV', hint = 'information is only ever added; record a new event';
end $$;

revoke all on function l2inv.refuse_change() from public;

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

revoke all on function l2inv.refuse_direct_write() from public;

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

revoke all on function l2inv.reasons(jsonb) from public;

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

revoke all on function l2inv.record_event() from public;

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

revoke all on function l2inv.record_fits(jsonb) from public;

-- Without this, a very large version could leave no number for the next scan. A dataset's first version is not checked,
-- since the first scan adds hundreds of thousands.
create function l2inv.refuse_gap() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from l2inv.dataset_version where dataset_id = new.dataset_id and version = new.version - 1) then
        raise exception 'dataset %: version % is out of sequence', new.dataset_id, new.version using errcode = 'L2INV';
    end if;
    return null;
end $$;

revoke all on function l2inv.refuse_gap() from public;

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

revoke all on function l2inv.end_run() from public;

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

revoke all on function l2inv.take_lock(text) from public;

-- Tables

create table l2inv.event (
    event_id    bigint not null,
    op_id       text collate "C" not null,
    seq         integer not null,  -- within the OP, from 1 without holes
    kind        text not null,  -- what happened
    state       text,
    actor       text not null,  -- who did it, as the caller stated
    recorded_at timestamptz not null,
    run_id      bigint,  -- no foreign key: an event outlives what it refers to
    detail      jsonb not null default '{}',
    recorded_by text not null,  -- the database role of the session
    hash        bytea not null,  -- over the columns above and the hash of the event before it: docs/audit.md
    constraint event_pkey primary key (event_id),
    constraint event_op_id_seq_key unique (op_id, seq),
    constraint event_actor_check check ((actor <> '')),
    constraint event_detail_fits check (l2inv.detail_fits(kind, detail)),
    constraint event_op_id_check check (((op_id <> '') and (length(op_id) <= 200))),
    constraint event_state_check check ((state = any (array['discovered', 'invertible', 'not_invertible', 'preprocessed', 'working', 'inverted', 'published', 'error'])))
);
comment on table l2inv.event is 'Append-only: what happened to each OP, in order';
create index event_issued on l2inv.event using gin (((detail -> 'inversions')) jsonb_path_ops) where (kind = any (array['claimed', 'inverted', 'amended']));
create index event_job on l2inv.event using btree (op_id, seq) where (kind = 'preprocess_started');
create index event_named on l2inv.event using btree (((detail ->> 'inversion_id'))) where (kind = 'inversion_named');
create index event_told on l2inv.event using btree (op_id, event_id) where (kind = any (array['published', 'withdrawn', 'reinstated', 'restored', 'voided']));
create index event_told_after on l2inv.event using btree (event_id) where (kind = any (array['published', 'withdrawn', 'reinstated', 'restored', 'voided']));
create index event_voided on l2inv.event using btree (op_id) where (kind = 'voided');
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
    cycle              integer not null,  -- which inversion of the OP it is, from 1
    priority           integer not null default 0,
    assignee           text,
    due_at             timestamptz,  -- of the claim
    r0_class           smallint,  -- of an OP in state preprocessed, as of its newest event: 1 good to 4 unknown
    arrived            timestamptz,  -- the first createDate of its datasets' versions
    observed           timestamptz,  -- the first startTime of its datasets' versions
    reasons            jsonb,  -- of the newest verdict: why not, in short, as in l2inv.reasons
    constraint op_state_pkey primary key (op_id)
) with (autovacuum_vacuum_scale_factor=0.01, fillfactor=80);
comment on table l2inv.op_state is 'Derived from l2inv.event by its trigger; never written otherwise';
create index op_state_assignee on l2inv.op_state using btree (assignee) where (assignee is not null);
create index op_state_offered on l2inv.op_state using btree (priority desc, r0_class, since, op_id) where ((state = 'preprocessed') and (on_hold_seq is null) and (not coalesce((datasets_seq > verdict_seq), false)));
create index op_state_ready on l2inv.op_state using btree (priority desc, since, op_id) where (state = 'preprocessed');
create index op_state_state on l2inv.op_state using btree (state);
create trigger derived_only before insert or delete or update or truncate on l2inv.op_state for each statement execute function l2inv.refuse_direct_write();
alter table l2inv.op_state enable always trigger derived_only;

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
    constraint dataset_version_dataset_id_check check (((dataset_id <> '') and (length(dataset_id) <= 200))),
    constraint dataset_version_op_id_check check (((op_id <> '') and (length(op_id) <= 200))),
    constraint dataset_version_record_fits check (l2inv.record_fits(record)),
    constraint dataset_version_version_check check ((version > 0))
);
create index dataset_version_op on l2inv.dataset_version using btree (op_id);
create trigger append_only before delete or update or truncate on l2inv.dataset_version for each statement execute function l2inv.refuse_change();
alter table l2inv.dataset_version enable always trigger append_only;
create trigger without_gaps after insert on l2inv.dataset_version for each row when ((new.version > 1)) execute function l2inv.refuse_gap();
alter table l2inv.dataset_version enable always trigger without_gaps;

create table l2inv.received (
    dataset_id   text collate "C" not null,
    raw_hash     bytea,  -- of the reader and the bytes; null: to be decoded again
    op_id        text collate "C" not null,
    content_hash bytea not null,  -- of the newest version
    updated_at   timestamptz,  -- the store's updateDate
    given        bigint not null,  -- which fields are not null, a bit each: for the drift profile
    constraint received_pkey primary key (dataset_id),
    constraint received_raw_hash_key unique (raw_hash)
);

create table l2inv.quarantine (
    raw_hash    bytea not null,  -- one row a record, however often it is read
    dataset_id  text,
    reason      text not null,
    raw         bytea not null,  -- as received: it may not be valid text
    is_second   boolean not null default false,  -- readable, but differs from the first record of its dataset in the scan
    first_seen  timestamptz not null default clock_timestamp(),
    last_seen   timestamptz not null default clock_timestamp(),
    resolved_at timestamptz,  -- when it became readable, or was gone from the store
    constraint quarantine_pkey primary key (raw_hash),
    constraint quarantine_last_seen_check check (((last_seen >= '2000-01-01 00:00:00+00'::timestamp with time zone) and (last_seen <= '9999-01-01 00:00:00+00'::timestamp with time zone)))
);

create table l2inv.criteria (
    criteria_version text not null,  -- a hash of the rules
    rules            jsonb not null,
    first_used_at    timestamptz not null default clock_timestamp(),
    constraint criteria_pkey primary key (criteria_version),
    constraint criteria_rules_check check ((jsonb_typeof(rules) = 'object'))
);
create trigger append_only before delete or update or truncate on l2inv.criteria for each statement execute function l2inv.refuse_change();
alter table l2inv.criteria enable always trigger append_only;

create table l2inv.run (
    run_id      bigint generated always as identity,
    stage       text not null,
    actor       text not null,
    started_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz,  -- null: still running, or killed
    result      jsonb,
    constraint run_pkey primary key (run_id),
    constraint run_result_check check (l2inv.report_fits(result))
);
create trigger append_only before delete or truncate on l2inv.run for each statement execute function l2inv.refuse_change();
alter table l2inv.run enable always trigger append_only;
create trigger end_run before update on l2inv.run for each row execute function l2inv.end_run();
alter table l2inv.run enable always trigger end_run;

create table l2inv.lock (
    name text not null,  -- a stage; `export`, locked while events about inversions are added; or `issue`, while ids are issued
    key  bigint,
    pid  integer,
    role oid,  -- of the session: anyone can see the key while it is held, and may later get the same pid
    constraint lock_pkey primary key (name)
);

-- Views

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
