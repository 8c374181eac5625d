-- The messages that refused readings came in: one each, however many of its
-- readings were refused.

set local search_path to {{ .schema }};

create table dead_messages (
    cluster   text collate "C" not null,
    namespace bigint not null,
    id        text collate "C" not null, -- shard, log index and position in that entry
    device_id text collate "C" not null,
    key       text collate "C" not null, -- by which the publisher's repeats are known, '' for none
    received  timestamptz not null,
    readings  integer not null,
    nulls     integer not null, -- values that gave no reading
    content   jsonb not null,
    primary key (cluster, namespace, id)
);
comment on table dead_messages is 'Sluice: the messages that the readings in dead_letters came in.';

alter table dead_letters add column message_id text collate "C" not null default '';
create index dead_letters_message_idx on dead_letters (message_id) where message_id <> '';
