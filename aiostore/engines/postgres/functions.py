"""What runs in the server: the functions of a schema, as SQL with ``{schema}`` and ``{lock}`` to be filled in.

``append_group`` judges and stores a group of appends in one transaction. It takes the schema's lock first: in READ
COMMITTED each later statement sees all that was committed before the lock was got, so that positions are dense, and
become visible in their order. ``{lock}`` is held until that is so.

The fence: each writer has a row with the token of its latest connection and the number and result of its last group
that stored anything, written with the group. ``take_over`` puts a new token there, under the lock: from then on an
earlier call of the same writer, wherever it got stuck, is refused, and the row tells whether it was stored.
"""

from __future__ import annotations

from typing import Final

PASSED: Final = 0
DUPLICATE: Final = 1
CONFLICT: Final = 2
MATCHED: Final = 3

FENCED: Final = "AS001"
"""The SQLSTATE of a group that came over a connection which the writer has given up."""

SEPARATOR: Final = "\x1f"
"""Joins tags into one text: a control character, which no tag has."""

TAKE_OVER: Final = """
CREATE FUNCTION {schema}.take_over(the_writer uuid, the_token bigint) RETURNS {schema}.writers
LANGUAGE plpgsql AS $$
DECLARE
    mine {schema}.writers;
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    DELETE FROM {schema}.writers w WHERE w.seen < now() - interval '30 days' AND w.writer <> the_writer;
    INSERT INTO {schema}.writers AS w (writer, token, group_number, seen) VALUES (the_writer, the_token, 0, now())
        ON CONFLICT (writer) DO UPDATE SET token = excluded.token, seen = excluded.seen
        RETURNING w.* INTO mine;
    RETURN mine;
END $$;
"""

FIRST_MATCH: Final = """
CREATE FUNCTION {schema}.first_match(above bigint, up_to bigint, items json) RETURNS bigint
LANGUAGE sql STABLE AS $$
    WITH item AS MATERIALIZED (
        SELECT CASE WHEN i ->> 'types' IS NULL THEN NULL
                    ELSE ARRAY(SELECT t COLLATE "C" FROM json_array_elements_text(i -> 'types') t) END AS types,
               CASE WHEN i ->> 'tags' IS NULL THEN NULL
                    ELSE ARRAY(SELECT t COLLATE "C" FROM json_array_elements_text(i -> 'tags') t) END AS tags,
               (i ->> 'prefix') COLLATE "C" AS prefix
        FROM json_array_elements(items) i)
    SELECT e.pos FROM {schema}.events e
    WHERE e.pos > above AND e.pos <= up_to AND EXISTS (
        SELECT FROM item i
        WHERE (i.types IS NULL OR e.type = ANY (i.types))
          AND (i.tags IS NULL OR e.tags @> i.tags)
          AND (i.prefix IS NULL
               OR starts_with((SELECT s.name FROM {schema}.streams s WHERE s.sid = e.sid), i.prefix)))
    ORDER BY e.pos LIMIT 1
$$;
"""

# Arrays of one length belong together: streams; k_ the keys; x_ the expectations (-1: the stream exists); c_ the
# conditions; e_ the events. *_append and *_stream are places in the group and in streams, from 1; e_nth counts the
# events of the group in their stream, from 1. NULL stands for an array in which nothing stands, and where it says no
# more than is known otherwise: e_append and e_more of one append, e_stream and e_nth of one stream.
#
# What is refused is taken out of the arrays of events, so that from there on it is as if it had not been asked for.
APPEND_GROUP: Final = """
CREATE FUNCTION {schema}.append_group(
    the_writer uuid, the_token bigint, the_group bigint, stamp timestamptz, appends integer, streams text[],
    e_type text[], e_data json[], e_size integer[],
    e_append integer[] DEFAULT NULL, e_stream integer[] DEFAULT NULL, e_nth integer[] DEFAULT NULL,
    e_more integer[] DEFAULT NULL, e_key text[] DEFAULT NULL, e_metadata json[] DEFAULT NULL,
    e_tags text[] DEFAULT NULL,
    k_append integer[] DEFAULT NULL, k_stream integer[] DEFAULT NULL, k_key text[] DEFAULT NULL,
    x_append integer[] DEFAULT NULL, x_stream integer[] DEFAULT NULL, x_expected bigint[] DEFAULT NULL,
    c_append integer[] DEFAULT NULL, c_above bigint[] DEFAULT NULL, c_match bigint[] DEFAULT NULL,
    c_items text[] DEFAULT NULL)
RETURNS {schema}.result
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    answer {schema}.result;
    verdicts smallint[] := array_fill({passed}::smallint, ARRAY[appends]);
    details bigint[] := array_fill(0::bigint, ARRAY[appends]);
    stream_ids bigint[];
    versions bigint[];
    previous bigint;
    issued bigint;
    known boolean;
    first_id bigint;
    first_version bigint;
    refused boolean := false;
    found_at bigint;
    total integer;
    one record;
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    SELECT h.pos, h.sids, greatest(h.ts, stamp), s.sid, s.version,
           EXISTS (SELECT FROM {schema}.writers w WHERE w.writer = the_writer AND w.token = the_token)
        INTO STRICT previous, issued, stamp, first_id, first_version, known
        FROM {schema}.head h LEFT JOIN {schema}.streams s ON s.name = streams[1];
    IF NOT known THEN
        RAISE EXCEPTION 'another connection of this writer has taken over' USING ERRCODE = '{fenced}';
    END IF;
    IF cardinality(streams) = 1 THEN
        stream_ids := ARRAY[coalesce(first_id, issued + 1)];
        versions := ARRAY[coalesce(first_version, 0)];
    ELSE
        SELECT array_agg(coalesce(s.sid, issued + n.place) ORDER BY n.place),
               array_agg(coalesce(s.version, 0) ORDER BY n.place)
            INTO stream_ids, versions
            FROM unnest(streams) WITH ORDINALITY n(name, place) LEFT JOIN {schema}.streams s ON s.name = n.name;
    END IF;

    IF k_append IS NOT NULL THEN
        FOR one IN
            SELECT k.append, e.pos FROM unnest(k_append, k_stream, k_key) k(append, stream, key)
            JOIN {schema}.events e ON e.sid = stream_ids[k.stream] AND e.key = k.key
        LOOP
            verdicts[one.append] := {duplicate};
            details[one.append] := one.pos;
            refused := true;
        END LOOP;
    END IF;
    IF x_append IS NOT NULL THEN
        FOR one IN
            SELECT x.append, x.place FROM unnest(x_append, x_stream, x_expected)
                WITH ORDINALITY x(append, stream, expected, place)
            WHERE CASE WHEN x.expected < 0 THEN versions[x.stream] = 0
                       ELSE versions[x.stream] <> x.expected END
            ORDER BY x.place
        LOOP
            IF verdicts[one.append] = {passed} THEN
                verdicts[one.append] := {conflict};
                details[one.append] := one.place;
                refused := true;
            END IF;
        END LOOP;
    END IF;
    IF c_append IS NOT NULL THEN
        FOR one IN
            SELECT c.* FROM unnest(c_append, c_above, c_match, c_items) c(append, above, match, items)
            WHERE c.above < previous OR c.match IS NOT NULL
        LOOP
            IF verdicts[one.append] = {passed} THEN
                found_at := one.match;
                IF found_at IS NULL THEN
                    found_at := {schema}.first_match(one.above, previous, one.items::json);
                END IF;
                IF found_at IS NOT NULL THEN
                    verdicts[one.append] := {matched};
                    details[one.append] := found_at;
                    refused := true;
                END IF;
            END IF;
        END LOOP;
    END IF;

    answer := ROW(previous, stamp, NULL, NULL, NULL, versions);
    IF refused THEN
        SELECT array_agg(v.place), array_agg(v.verdict), array_agg(v.detail)
            INTO answer.refused, answer.verdicts, answer.details
            FROM unnest(verdicts, details) WITH ORDINALITY v(verdict, detail, place) WHERE v.verdict <> {passed};
        SELECT array_agg(e.stream ORDER BY e.place), array_agg(e.nth ORDER BY e.place),
               array_agg(e.type ORDER BY e.place), array_agg(e.data ORDER BY e.place),
               array_agg(e.metadata ORDER BY e.place), array_agg(e.tags ORDER BY e.place),
               array_agg(e.key ORDER BY e.place), array_agg(e.more ORDER BY e.place),
               array_agg(e.size ORDER BY e.place)
            INTO e_stream, e_nth, e_type, e_data, e_metadata, e_tags, e_key, e_more, e_size
            FROM (
                SELECT e.place, coalesce(e.stream, 1) AS stream, e.type, e.data, e.metadata, e.tags, e.key, e.more,
                       e.size, row_number() OVER (PARTITION BY e.stream ORDER BY e.place) AS nth
                FROM unnest(e_append, e_stream, e_type, e_data, e_metadata, e_tags, e_key, e_more, e_size)
                    WITH ORDINALITY e(append, stream, type, data, metadata, tags, key, more, size, place)
                WHERE verdicts[coalesce(e.append, 1)] = {passed}
            ) e;
    END IF;
    total := cardinality(e_type);
    IF total IS NULL THEN
        RETURN answer;
    END IF;
    INSERT INTO {schema}.events (pos, sid, version, type, ts, data, metadata, tags, key, more, size)
        SELECT previous + p, stream_ids[coalesce(e_stream[p], 1)],
               versions[coalesce(e_stream[p], 1)] + coalesce(e_nth[p], p),
               e_type[p], stamp, e_data[p], e_metadata[p], string_to_array(e_tags[p], chr(31)), e_key[p],
               CASE WHEN appends = 1 THEN total - p ELSE coalesce(e_more[p], 0) END, e_size[p]
        FROM generate_series(1, total) p;
    IF e_tags IS NOT NULL THEN
        INSERT INTO {schema}.tags (tag, pos)
            SELECT t.tag, previous + p
            FROM generate_series(1, total) p CROSS JOIN LATERAL unnest(string_to_array(e_tags[p], chr(31))) t(tag);
    END IF;
    IF cardinality(streams) = 1 THEN
        UPDATE {schema}.streams SET version = versions[1] + total WHERE sid = stream_ids[1];
        IF NOT FOUND THEN
            INSERT INTO {schema}.streams (sid, name, version) VALUES (stream_ids[1], streams[1], total);
        END IF;
    ELSE
        INSERT INTO {schema}.streams AS s (sid, name, version)
            SELECT stream_ids[n.stream], streams[n.stream], versions[n.stream] + n.events
            FROM (SELECT e_stream[p] AS stream, max(e_nth[p]) AS events FROM generate_series(1, total) p GROUP BY 1) n
            ON CONFLICT (name) DO UPDATE SET version = excluded.version;
    END IF;
    UPDATE {schema}.head SET pos = previous + total, ts = stamp, sids = issued + cardinality(streams);
    UPDATE {schema}.writers SET group_number = the_group, result = answer, seen = now() WHERE writer = the_writer;
    PERFORM pg_notify('{channel}', (previous + total)::text);
    RETURN answer;
END $$;
"""

# The last version of a stream whose event stands at or below a position, found by halving: versions are dense, and in
# the order of positions.
VERSION_AT: Final = """
CREATE FUNCTION {schema}.version_at(stream bigint, place bigint) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    low bigint := 0;
    high bigint;
    middle bigint;
BEGIN
    IF place <= 0 THEN
        RETURN 0;
    END IF;
    SELECT version INTO high FROM {schema}.streams WHERE sid = stream;
    IF (SELECT pos FROM {schema}.events WHERE sid = stream AND version = high) <= place THEN
        RETURN high;
    END IF;
    WHILE high - low > 1 LOOP
        middle := (low + high) / 2;
        IF (SELECT pos FROM {schema}.events WHERE sid = stream AND version = middle) <= place THEN
            low := middle;
        ELSE
            high := middle;
        END IF;
    END LOOP;
    RETURN low;
END $$;
"""

# What identifies the event at a position, so that another in its place is seen. NULL where there is none.
MARK_OF: Final = """
CREATE FUNCTION {schema}.mark_of(place bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN place = 0 THEN '' ELSE (
        SELECT encode(sha256(convert_to(concat_ws(chr(31), s.name, e.version, e.type, extract(epoch FROM e.ts), e.data,
            e.metadata, array_to_string(e.tags, chr(30)), e.key, e.more), 'UTF8')), 'hex')
        FROM {schema}.events e JOIN {schema}.streams s ON s.sid = e.sid WHERE e.pos = place) END
$$;
"""

# Returns the new revisions (0 where nothing is kept), or which of them was not expected, from 1 on, and what is kept.
SAVE_STATES: Final = """
CREATE FUNCTION {schema}.save_states(the_position bigint, keys text[], the_values bytea[], expected bigint[],
    OUT saved bigint[], OUT refused integer, OUT actual bigint)
LANGUAGE plpgsql AS $$
DECLARE
    the_mark text := {schema}.mark_of(the_position);
    revision bigint;
    revisions bigint[] := '{{}}';
BEGIN
    IF the_mark IS NULL THEN
        RAISE EXCEPTION 'there is no event at position %', the_position USING ERRCODE = '{no_event}';
    END IF;
    PERFORM pg_advisory_xact_lock({states_lock});
    FOR place IN 1..cardinality(keys) LOOP
        SELECT coalesce((SELECT s.revision FROM {schema}.states s WHERE s.key = keys[place]), 0) INTO revision;
        IF expected[place] <> revision THEN
            refused := place;
            actual := revision;
            RETURN;
        END IF;
        revisions := revisions || CASE WHEN the_values[place] IS NULL THEN 0 ELSE revision + 1 END;
    END LOOP;
    FOR place IN 1..cardinality(keys) LOOP
        IF the_values[place] IS NULL THEN
            DELETE FROM {schema}.states s WHERE s.key = keys[place];
        ELSE
            INSERT INTO {schema}.states AS s (key, revision, pos, mark, value)
                VALUES (keys[place], revisions[place], the_position, the_mark, the_values[place])
                ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, pos = excluded.pos,
                    mark = excluded.mark, value = excluded.value;
        END IF;
    END LOOP;
    saved := revisions;
END $$;
"""

NO_EVENT: Final = "AS002"
"""The SQLSTATE of a state that was made of an event which is not there."""

FUNCTIONS: Final = (FIRST_MATCH, APPEND_GROUP, TAKE_OVER, VERSION_AT, MARK_OF, SAVE_STATES)
