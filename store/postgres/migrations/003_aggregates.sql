-- What dashboards ask for: every minute and every hour of every sensor. With
-- TimescaleDB they are continuous aggregates that include what is not
-- materialised yet, without it views of the same name and columns that compute
-- them when they are asked. Both are made of the readings, not one of the other,
-- so that one look at what was written late tells whether they are current.
-- Sums leave out values beyond 1e290: one more of them would be an overflow, an
-- error that the refresh would meet again for ever.

set local search_path to {{ .schema }}; -- RESET ALL between migrations may leave another

{{ range $view := .views -}}
create {{ if $.columnstore }}materialized {{ end }}view {{ $view.Name }}
{{ if $.columnstore }}with (timescaledb.continuous, timescaledb.materialized_only = false) {{ end }}as
select {{ if $.columnstore }}{{ $.extension }}.time_bucket(interval '{{ $view.Step }}', time){{ else }}date_bin(interval '{{ $view.Step }}', time, timestamptz 'epoch'){{ end }} as time,
    device_id, sensor, count(*) as count, min(value) as min, max(value) as max,
    coalesce(sum(value) filter (where abs(value) < 1e290), 0) as sum,
    coalesce(sum(value) filter (where abs(value) < 1e290), 0) / count(*) as avg,
    {{ if $.columnstore }}{{ $.extension }}.last(value, time){{ else }}(array_agg(value order by time desc))[1]{{ end }} as last,
    max(time) as last_time
from telemetry
group by 1, 2, 3{{ if $.columnstore }}
with no data{{ end }};
comment on view {{ $view.Name }} is 'Sluice: the readings of each sensor per {{ $view.Step }}. avg is sum / count.';

{{ end -}}
{{ if .columnstore -}}
alter table telemetry set (timescaledb.compress, timescaledb.compress_segmentby = 'device_id, sensor', timescaledb.compress_orderby = 'time');
{{ end }}
