-- Messages that wait, order by key, held rows, records, and relays that share lanes.
--
-- Each statement that runs all the time finds one index whose condition it fulfils, and no other:
-- a partial index that the planner believes to be empty, because it was when it last looked, is as
-- good to it as any other (`plans.rs` tests that).
--
-- A claim becomes the row of a handled message as it is: `state` 0, `claimed_at` the time at which
-- it was handled. States: 0 handled, 1 deferred, 2 parked, 3 dead.
create sequence tidings_inbox_number;
alter table tidings_inbox
    add column state smallint not null default 0,
    -- Null once it is handled.
    add column number bigint,
    add column redrive bigint not null default 0,
    add column order_group text,
    add column order_key text,
    -- The second half of the name of the key's lock.
    add column order_hash integer,
    -- When it is due, or when its lease ends.
    add column due timestamptz,
    add column lease text,
    add column unfinished bigint not null default 0,
    add column failures bigint not null default 0,
    add column history text,
    add column blocks boolean not null default false,
    add column metadata text,
    add column body bytea,
    add constraint tidings_inbox_lease check (lease is null or state = 1);
alter sequence tidings_inbox_number owned by tidings_inbox.number;
drop index tidings_inbox_age;
create index tidings_inbox_handled on tidings_inbox (consumer, claimed_at) where state = 0;
create index tidings_inbox_due on tidings_inbox (consumer, due) where state = 1;
create index tidings_inbox_leased on tidings_inbox (lease) where lease is not null;
create index tidings_inbox_waiting on tidings_inbox (consumer, state) where metadata is not null;
create index tidings_inbox_listed on tidings_inbox (number) where number is not null;
-- What the other rows of a key wait for: never more than one.
create unique index tidings_inbox_head on tidings_inbox (order_group, order_key)
    where order_key is not null and (state = 1 or state = 3 and blocks);
create index tidings_inbox_parked on tidings_inbox (order_group, order_key, number)
    where state = 2;

-- Rows that were deferred are ready. States: 0 ready, 1 held, 2 set aside.
drop index tidings_outbox_ready;
drop index tidings_outbox_deferred;
alter table tidings_outbox
    drop column deferred_until,
    add column destination text,
    -- FNV-1a of the key, 64 bits; null without a key.
    add column key_hash bigint,
    add column state smallint not null default 0,
    add column held_key bigint generated always as (case when state = 1 then key_hash end) stored,
    add column reason text;
create index tidings_outbox_ready on tidings_outbox (lane, position) where state = 0;
create index tidings_outbox_held on tidings_outbox (lane, destination, position)
    where state = 1;
create index tidings_outbox_held_key on tidings_outbox (destination, held_key)
    where held_key is not null;
create index tidings_outbox_aside on tidings_outbox (position) where state = 2;

create table tidings_relay (
    relay text primary key,
    alive_until timestamptz not null
);

create table tidings_record (
    kind text not null,
    id text not null,
    version bigint not null default 1,
    label text not null,
    due timestamptz,
    -- When a worker may take it: `due`, or the end of its lease.
    take_at timestamptz,
    lease text,
    written timestamptz not null default clock_timestamp(),
    body bytea not null,
    primary key (kind, id)
);
create index tidings_record_due on tidings_record (kind, take_at) where take_at is not null;
create index tidings_record_written on tidings_record (kind, written, id);
create index tidings_record_label on tidings_record (kind, label, written, id);
