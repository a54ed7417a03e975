-- What callbacks told of submissions: the last word of each, kept with its job.
create table vg_witness (
    job        blob not null references vg_job (id) on delete cascade,
    submission text not null,
    witness    text not null,
    primary key (job, submission)
) without rowid;
