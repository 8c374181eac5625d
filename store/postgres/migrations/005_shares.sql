-- What explains an alert, and what an operator said of it. Constant defaults:
-- no row is rewritten, and a node of an earlier version goes on writing.

set local search_path to {{ .schema }}; -- RESET ALL between migrations may leave another

alter table anomalies
    add column shares text    not null default '',
    add column normal boolean not null default false,
    add column wave   text    collate "C";
comment on table anomalies is 'Sluice: alerts, one row each; closed is null while open. severity 0..100, low..high is the expected band. shares says how much each sensor took part, normal that an operator called it so; wave is the id of the alert of a whole model that this one was the beginning of.';
