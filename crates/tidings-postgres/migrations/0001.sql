-- The first version: claims, messages to send, lanes.
--
-- The rows of lanes keep their place in their page (`fillfactor`), since they are updated for ever.
create table tidings_inbox (
    consumer text not null,
    message text not null,
    claimed_at timestamptz not null default clock_timestamp(),
    primary key (consumer, message)
);
create index tidings_inbox_age on tidings_inbox using brin (claimed_at);
create table tidings_outbox (
    position bigint generated always as identity primary key,
    lane smallint not null,
    created_at timestamptz not null default clock_timestamp(),
    deferred_until timestamptz,
    message text not null,
    body bytea not null
);
create index tidings_outbox_ready on tidings_outbox (position) include (lane)
    where deferred_until is null;
create index tidings_outbox_deferred on tidings_outbox (deferred_until)
    where deferred_until is not null;
create table tidings_lane (
    lane smallint primary key,
    relay text,
    leased_until timestamptz not null default '-infinity'
) with (fillfactor = 10);
insert into tidings_lane (lane) select generate_series(0, 15);
