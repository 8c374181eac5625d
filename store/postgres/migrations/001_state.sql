-- Everything but the readings. Text that we look up is compared by its bytes
-- (collate "C"): the order is the same on every server, and cheaper.

set local search_path to {{ .schema }}; -- RESET ALL between migrations may leave another

create table flush_watermarks (
    cluster    text   collate "C" not null,
    namespace  bigint not null,
    shard      bigint not null,
    lane       smallint not null, -- 0 live, 1 late
    last_index bigint not null,   -- raft index of the shard's log up to which everything of the lane is here
    term       bigint not null,   -- of the leader that wrote it
    updated    timestamptz not null default now(),
    primary key (cluster, namespace, shard, lane)
) with (fillfactor = 50);
comment on table flush_watermarks is 'Sluice: how far each lane of each shard is stored. Never change or delete a row.';

create table devices (
    device_id  text collate "C" primary key,
    attributes jsonb not null default '{}',
    first_seen timestamptz not null,
    last_seen  timestamptz not null
) with (fillfactor = 80);
comment on table devices is 'Sluice: last known attributes of each device, when it was first and last heard of.';

create table device_changes (
    device_id text collate "C" not null,
    attribute text collate "C" not null,
    value     text, -- null: the attribute is gone
    changed   timestamptz not null,
    primary key (device_id, attribute, changed)
);
comment on table device_changes is 'Sluice: history of the attributes of devices, one row per change that a flush has seen.';

create table anomalies (
    cluster   text collate "C" not null,
    id        text collate "C" not null,
    device_id text collate "C" not null,
    sensor    text collate "C" not null,
    opened    timestamptz not null,
    closed    timestamptz,
    severity  double precision not null,
    cause     text not null,
    value     double precision not null,
    expected  double precision not null,
    low       double precision not null,
    high      double precision not null,
    primary key (cluster, id)
);
create index anomalies_opened_idx on anomalies (opened desc);
create index anomalies_device_idx on anomalies (device_id, opened desc);
comment on table anomalies is 'Sluice: alerts, one row each; closed is null while open. severity 0..100, low..high is the expected band.';

create table dead_letters (
    id         bigint generated always as identity primary key,
    created    timestamptz not null default now(),
    cluster    text collate "C" not null,
    namespace  bigint not null,
    shard      bigint not null,
    from_index bigint not null,
    to_index   bigint not null,
    kind       text not null, -- reading, device or anomaly
    device_id  text collate "C" not null,
    sqlstate   text not null,
    reason     text not null,
    content    jsonb not null
);
comment on table dead_letters is 'Sluice: rows that a constraint or trigger of this database refused, with the reason.';
