-- What may happen to an observing program (OP).

-- Which event may happen in which state. l2inv/domain/states.py has the same table in Python; a test compares the two over
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
