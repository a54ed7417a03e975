-- Ids are 16-byte blobs, money is micro-dollars, integers stand for states: see `rows.rs`.
-- Times are microseconds since 1970 UTC: `…_at` by the wall clock, for people; `…_on` by the steady
-- clock of the process that wrote (see `Tx::steady`), for what is due.

-- What the whole queue shares: one row.
create table vg_meta (
    id      integer primary key check (id = 1),
    v       integer not null default 0,     -- virtual time: the highest fair tag claimed
    seq     integer not null default 0,     -- order of arrival
    paused  integer not null default 0,
    signals integer not null default 0      -- moves when workers or the courier should look
);
insert into vg_meta (id) values (1);

create table vg_worker (
    id         blob primary key,
    name       text not null,
    started_at integer not null,
    seen_at    integer not null,            -- for people; no lease is judged by it
    beats      integer not null default 0,  -- what a lease is judged by
    gone       integer not null default 0   -- 0 known, 1 died, 2 left
) without rowid;

create table vg_tenant (
    tenant         text primary key,
    weight         integer not null,
    max_active     integer not null,
    live           integer not null,
    active         integer not null,        -- ready + running
    last_tag       integer not null,
    held           integer not null,
    creates_per    integer not null,        -- length of the window that `creates` counts in; 0: none
    creates_window integer not null,
    creates        integer not null,
    budget_per     integer not null,        -- the same for `spent`
    budget_window  integer not null,
    spent          integer not null,
    completed      integer not null,        -- ended jobs on record
    failed         integer not null         -- the same, failed or canceled
) without rowid;

-- Written when a job is created, retried, ended or resolved; a live job's news are in vg_queue.
create table vg_job (
    id         blob primary key,
    tenant     text not null,
    request    text not null,
    plan       text not null,
    priority   integer not null,
    created_at integer not null,
    final      integer,                     -- null while live
    started_at integer,
    ended_at   integer,
    ended_on   integer,
    failed     integer,                     -- 0 completed, 1 failed or canceled; null while live
    version    integer not null,
    progress   integer not null,
    attempts   integer not null,
    crashes    integer not null,
    cancel     integer not null,
    epoch      integer not null,
    last_worker blob,                       -- the claim that was released or settled last, and how:
    last_epoch integer,                     -- tells `Already` from `Stale`
    last_write integer,
    held       integer not null,
    cost       integer not null,
    output     text,
    failure    text
);
create unique index vg_job_of_tenant on vg_job (tenant, id);
create index vg_job_ended_of_tenant on vg_job (tenant, final, id) where final is not null;
create index vg_job_old_of_tenant on vg_job (tenant, failed, ended_on, id) where failed is not null;
create index vg_job_old on vg_job (failed, ended_on, id) where failed is not null;

-- Live jobs only: no index here grows with history.
create table vg_queue (
    job        blob primary key references vg_job (id),
    tenant     text not null,
    state      integer not null,
    priority   integer not null,
    tag        integer not null default 0,
    seq        integer not null,
    run_on     integer not null,
    worker     blob,
    epoch      integer not null,
    last_worker blob,
    last_epoch integer,
    last_write integer,
    mark       integer not null,            -- the last 4 bytes of the id: to compare many claims by one sum
    attempts   integer not null default 0,
    crashes    integer not null default 0,
    progress   integer not null default 0,
    version    integer not null,
    cancel     integer not null default 0,
    wake       integer not null default 0,
    unheld     integer not null default 0,  -- the last beat of its worker did not name it
    claimed_on integer not null default 0,
    started_at integer,
    held       integer not null,
    cost       integer not null default 0
) without rowid;
create index vg_queue_parked  on vg_queue (tenant, priority, seq) where state = 0;
create index vg_queue_ready   on vg_queue (priority, tag, seq, job) where state = 1;
create index vg_queue_waiting on vg_queue (run_on) where state = 2;
create index vg_queue_running on vg_queue (worker, epoch, mark) where state = 3;
create index vg_queue_flagged on vg_queue (worker) where state = 3 and (cancel = 1 or wake = 1 or unheld = 1);
create index vg_queue_of_tenant on vg_queue (tenant, job);

create table vg_step (
    job      blob not null references vg_job (id) on delete cascade,
    step     text not null,
    revision integer not null,
    record   text not null,
    primary key (job, step)
) without rowid;

create table vg_idem (
    tenant     text not null,
    key        text not null,
    hash       text not null,
    job        blob not null,
    expires_on integer not null,
    primary key (tenant, key)
) without rowid;
create index vg_idem_expiry on vg_idem (expires_on);

create table vg_delivery (
    seq        integer primary key autoincrement,
    event      text not null unique,
    kind       text not null,
    job        blob not null,
    tenant     text not null,
    endpoint   text not null,
    body       text not null,
    state      integer not null,
    attempts   integer not null default 0,
    next_at    integer not null,
    next_on    integer not null,
    worker     blob,
    epoch      integer not null default 0,
    last_worker blob,
    last_epoch integer,
    last_outcome text,
    reason     text,
    created_at integer not null
);
create index vg_delivery_due       on vg_delivery (endpoint, next_on, seq) where state = 0;
create index vg_delivery_next      on vg_delivery (next_on) where state = 0;
create index vg_delivery_flying    on vg_delivery (endpoint) where state = 1;
create index vg_delivery_owned     on vg_delivery (worker) where state = 1;
create index vg_delivery_of_tenant on vg_delivery (tenant, seq);
create index vg_delivery_of_job    on vg_delivery (job, seq);

-- Endpoints with pending deliveries, so that one endpoint's backlog is never walked to find another's.
create table vg_endpoint (
    endpoint text primary key,
    next_on  integer                        -- when something may be taken; null: as many as allowed are flying
) without rowid;
create index vg_endpoint_due on vg_endpoint (next_on) where next_on is not null;

-- Append-only. An adjustment has no step.
create table vg_ledger (
    seq      integer primary key,
    tenant   text not null,
    job      blob not null,
    step     text,
    ordinal  integer,
    provider text,
    model    text,
    amount   integer not null,
    basis    text,
    at       integer not null
);
create unique index vg_ledger_once on vg_ledger (job, step, ordinal);
create index vg_ledger_of_tenant on vg_ledger (tenant, at);
create trigger vg_ledger_no_update before update on vg_ledger begin select raise(abort, 'the ledger is append-only'); end;
create trigger vg_ledger_no_delete before delete on vg_ledger begin select raise(abort, 'the ledger is append-only'); end;
