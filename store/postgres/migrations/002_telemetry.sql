-- The readings. No unique index: the watermark makes repeats impossible, and the
-- index would cost more than half of the insert rate. The device index serves
-- one device's readings by time; batches arrive sorted by device, so that its
-- inserts come in runs. The BRIN index costs next to nothing and serves queries
-- over the whole fleet for the last minutes.

set local search_path to {{ .schema }}; -- RESET ALL between migrations may leave another

create table telemetry (
    time      timestamptz not null,
    device_id text collate "C" not null,
    sensor    text collate "C" not null,
    value     double precision not null,
    score     real not null,
    received  timestamptz not null,
    quality   smallint not null
){{ if not .hypertable }} partition by range (time){{ end }};
comment on table telemetry is 'Sluice: one row per reading. score 0..1 is how unusual it is; quality is a bit set: 1 time is the time of receipt, 2 time lies in the future, 4 detector still learning, 8 value was true or false.';

{{ if .hypertable -}}
select {{ .extension }}.create_hypertable('telemetry', 'time',
    chunk_time_interval => interval '{{ .days }} days', create_default_indexes => false);
{{ end }}
create index telemetry_device_idx on telemetry (device_id, time desc);
create index telemetry_time_idx on telemetry using brin (time) with (pages_per_range = 32);

{{ if not .hypertable -}}
create table telemetry_default partition of telemetry default;

-- Makes the partition of one stretch of time. It belongs to the owner of the
-- tables and runs with the owner's rights, so that the role that writes need not
-- own anything. Returns 'made', 'there', or why the default partition goes on
-- taking these rows.
create function telemetry_partition(lower timestamptz, upper timestamptz) returns text
language plpgsql security definer set search_path = {{ .schema }}, pg_temp as $body$
declare
    name text := 'telemetry_' || to_char(lower at time zone 'UTC', 'YYYYMMDD');
begin
    perform pg_advisory_xact_lock({{ .lock }});
    if to_regclass(format('{{ .schema }}.%I', name)) is not null then
        return 'there';
    end if;
    begin
        -- Made apart and attached: this needs no lock that stops readers or
        -- writers of the other partitions.
        execute format('create table {{ .schema }}.%I (like {{ .schema }}.telemetry including all)', name);
        execute format('alter table {{ .schema }}.telemetry attach partition {{ .schema }}.%I for values from (%L) to (%L)', name, lower, upper);
    exception when check_violation or invalid_object_definition then
        return sqlerrm;
    end;
    return 'made';
end
$body$;
revoke all on function telemetry_partition(timestamptz, timestamptz) from public;

-- Drops one partition that ends at or before a time, or what lies before it in
-- the default partition, and returns its name; null when nothing is left. It
-- waits 2 s at most for the lock that keeps readers and writers out meanwhile.
create function telemetry_expire(before timestamptz) returns text
language plpgsql security definer set search_path = {{ .schema }}, pg_temp set lock_timeout = '2s' as $body$
declare
    victim text;
    n      bigint;
begin
    perform pg_advisory_xact_lock({{ .lock }});
    select c.relname into victim
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = '{{ .schema }}.telemetry'::regclass
      and (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz <= before
    order by c.relname limit 1;
    if victim is not null then
        execute format('drop table {{ .schema }}.%I', victim);
        return victim;
    end if;
    delete from {{ .schema }}.telemetry_default where time < before;
    get diagnostics n = row_count;
    return case when n > 0 then 'telemetry_default' end;
end
$body$;
revoke all on function telemetry_expire(timestamptz) from public;
{{ end }}
