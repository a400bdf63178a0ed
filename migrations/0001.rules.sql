-- Which events an observing program (OP) may have, and what their details must contain.

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

-- Whether any reader can parse a document: at most 32 levels deep, and no number beyond the range of floating point.
create function l2inv.is_readable(document jsonb) returns boolean language sql immutable parallel safe as $$
    select not document @? '$.**{32}' and not document @?
        '$.** ? (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308)'
$$;

-- Whether a detail is valid for its kind of event.
create function l2inv.detail_fits(kind text, detail jsonb) returns boolean language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp as $$
begin
    return l2inv.is_readable(detail) and l2inv.fits(
        detail, case kind when 'amended' then 'inverted' when 'inversion_named' then 'inversion' else kind end);
end $$;

-- Whether a run's report has what commands and later runs rely on.
create function l2inv.report_fits(report jsonb) returns boolean language plpgsql stable parallel safe
    set search_path = pg_catalog, pg_temp as $$
begin
    return l2inv.is_readable(report) and l2inv.fits(report, 'report');
end $$;
