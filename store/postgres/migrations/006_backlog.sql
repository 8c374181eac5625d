-- The gap that a shard leaves after an outage, so that what is new comes first.

set local search_path to {{ .schema }};

alter table flush_watermarks add column until bigint;
comment on column flush_watermarks.until is 'Of lane 2 alone: rows of lane 0 behind last_index and up to here are not in the database yet; none are missing when both are equal.';
