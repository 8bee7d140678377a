-- The log of sent events. Its segments are partitions that are there from the start, so that no
-- running service makes or drops tables: one of them is written to, and one whose events are old is
-- emptied as a whole (`truncate`) and written to again when its turn comes.
--
-- Which one is written to stands in the only row of `tidings_log_state`; that the choice may be a
-- moment old does no harm.
create table tidings_log (
    segment smallint not null,
    position bigint not null,
    written timestamptz not null,
    message text not null,
    body bytea not null
) partition by list (segment);
do $$
begin
    for segment in 0..15 loop
        execute format(
            'create table tidings_log_%s partition of tidings_log for values in (%s)',
            segment, segment
        );
    end loop;
end
$$;
create index tidings_log_position on tidings_log (position);
create table tidings_log_state (
    segment smallint not null,
    -- When the first event can have been written to it.
    begun timestamptz not null default clock_timestamp(),
    dropped_until bigint not null default 0
);
insert into tidings_log_state (segment) values (0);
