//! A tenant's row: limits, counters, the fair tag, and who may go next.

use std::time::Duration;

use sqlx::Row;
use vidgen_core::{
    JobId, LedgerEntry, Limits, MAX_BATCH, TenantId, Usd, check_budget, check_creates, check_live_jobs, fair_tag,
    window_of,
};

use super::fault::Outcome;
use super::rows::{self, Blob, READY};
use super::writer::Tx;

/// `vg_tenant`, as an operation changes it. Read at its begin, written at its end.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) tenant: TenantId,
    weight: u32,
    max_active: i64,
    pub(super) live: i64,
    pub(super) active: i64,
    last_tag: i64,
    pub(super) held: Usd,
    creates: Counter,
    spent: Counter,
    pub(super) completed: i64,
    pub(super) failed: i64,
}

/// What was counted in one window; a length of zero counts nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    per: i64,
    window: i64,
    count: i64,
}

impl Counter {
    fn of(window: i64, per: Duration) -> Self {
        Self { per: rows::micros(per).max(1), window, count: 0 }
    }

    fn is_same(self, other: Self) -> bool {
        (self.per, self.window) == (other.per, other.window)
    }
}

impl Account {
    /// Whether a job that comes now may go at once: a slot is free, and nobody waits for it.
    pub(super) fn has_room(&self) -> bool {
        self.live == self.active && self.active < self.max_active
    }

    /// Uses up a slot; answers the fair tag of the job that has it now.
    pub(super) fn take_slot(&mut self, virtual_time: i64) -> i64 {
        self.active += 1;
        self.last_tag = fair_tag(virtual_time, self.last_tag, self.weight);
        self.last_tag
    }
}

impl Tx {
    /// A tenant's row, or that of one who was never seen.
    pub(super) async fn account(&mut self, tenant: &TenantId) -> Outcome<Account> {
        let row = sqlx::query("select * from vg_tenant where tenant = ?")
            .bind(tenant.as_str())
            .fetch_optional(&mut self.conn)
            .await?;
        let defaults = Limits::default();
        let Some(row) = row else {
            return Ok(Account {
                tenant: tenant.clone(),
                weight: defaults.weight,
                max_active: i64::from(defaults.active_jobs),
                live: 0,
                active: 0,
                last_tag: 0,
                held: Usd::ZERO,
                creates: Counter::default(),
                spent: Counter::default(),
                completed: 0,
                failed: 0,
            });
        };
        let counter = |per, window, count| -> Outcome<Counter> {
            Ok(Counter { per: row.try_get(per)?, window: row.try_get(window)?, count: row.try_get(count)? })
        };
        Ok(Account {
            tenant: tenant.clone(),
            weight: rows::small(row.try_get("weight")?),
            max_active: row.try_get("max_active")?,
            live: row.try_get("live")?,
            active: row.try_get("active")?,
            last_tag: row.try_get("last_tag")?,
            held: Usd::from_micros(row.try_get("held")?),
            creates: counter("creates_per", "creates_window", "creates")?,
            spent: counter("budget_per", "budget_window", "spent")?,
            completed: row.try_get("completed")?,
            failed: row.try_get("failed")?,
        })
    }

    /// Admits who may go, and writes the row.
    pub(super) async fn save(&mut self, mut account: Account) -> Outcome<()> {
        self.admit(&mut account).await?;
        sqlx::query(
            "insert into vg_tenant (tenant, weight, max_active, live, active, last_tag, held, creates_per, \
             creates_window, creates, budget_per, budget_window, spent, completed, failed) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
             on conflict (tenant) do update set weight = ?2, max_active = ?3, live = ?4, active = ?5, last_tag = ?6, \
             held = ?7, creates_per = ?8, creates_window = ?9, creates = ?10, budget_per = ?11, \
             budget_window = ?12, spent = ?13, completed = ?14, failed = ?15",
        )
        .bind(account.tenant.as_str())
        .bind(i64::from(account.weight))
        .bind(account.max_active)
        .bind(account.live)
        .bind(account.active)
        .bind(account.last_tag)
        .bind(account.held.micros())
        .bind(account.creates.per)
        .bind(account.creates.window)
        .bind(account.creates.count)
        .bind(account.spent.per)
        .bind(account.spent.window)
        .bind(account.spent.count)
        .bind(account.completed)
        .bind(account.failed)
        .execute(&mut self.conn)
        .await?;
        Ok(())
    }

    /// Makes parked jobs ready while their tenant has free slots, first come, first served.
    async fn admit(&mut self, account: &mut Account) -> Outcome<()> {
        let free = account.max_active.saturating_sub(account.active);
        if free <= 0 || account.live <= account.active {
            return Ok(());
        }
        let parked = sqlx::query(
            "select q.job, m.v from vg_queue q, vg_meta m where q.state = 0 and q.tenant = ? \
             order by q.priority, q.seq limit ?",
        )
        .bind(account.tenant.as_str())
        .bind(free.min(rows::limit(MAX_BATCH)))
        .fetch_all(&mut self.conn)
        .await?;
        for row in parked {
            sqlx::query("update vg_queue set state = ?, tag = ? where job = ?")
                .bind(READY)
                .bind(account.take_slot(row.try_get("v")?))
                .bind(row.try_get::<&[u8], _>("job")?)
                .execute(&mut self.conn)
                .await?;
            self.touched.ready = true;
        }
        Ok(())
    }

    /// Checks that one more live job meets the tenant's limits, and puts them in force. `others` is
    /// what is held beside it.
    pub(super) async fn check_limits(
        &mut self,
        account: &mut Account,
        limits: &Limits,
        others: Usd,
        hold: Usd,
    ) -> Outcome<()> {
        check_live_jobs(limits, rows::unsigned(account.live))?;
        match limits.budget {
            Some(budget) => {
                let (window, _) = window_of(self.timestamp(), budget.per);
                self.turn_to(account, Counter::of(window, budget.per)).await?;
            }
            None => account.spent = Counter::default(),
        }
        check_budget(limits, Usd::from_micros(account.spent.count), others, hold)?;
        account.weight = limits.weight.max(1);
        account.max_active = i64::from(limits.active_jobs.max(1));
        Ok(())
    }

    /// Counts one created job, if its window has room for it.
    pub(super) fn count_create(&self, account: &mut Account, limits: &Limits) -> Outcome<()> {
        let Some(creates) = limits.creates else { return Ok(()) };
        let (window, _) = window_of(self.timestamp(), creates.per);
        let fresh = Counter::of(window, creates.per);
        if !account.creates.is_same(fresh) {
            account.creates = fresh;
        }
        check_creates(limits, rows::small(account.creates.count), self.timestamp())?;
        account.creates.count += 1;
        Ok(())
    }

    /// Appends a row to the ledger, once; answers whether it was not there yet.
    pub(super) async fn book(
        &mut self,
        account: &mut Account,
        job: JobId,
        entry: &LedgerEntry,
        amount: Usd,
    ) -> Outcome<bool> {
        let cost = match entry {
            LedgerEntry::Cost(cost) => Some(cost),
            LedgerEntry::Adjustment => None,
        };
        // Before the row is written, since a turn of the window adds up what is there.
        if account.spent.per > 0 {
            let per = Duration::from_micros(rows::unsigned(account.spent.per));
            let (window, _) = window_of(self.timestamp(), per);
            self.turn_to(account, Counter::of(window, per)).await?;
        }
        let basis = cost.map(|cost| rows::to_json(&cost.cost.basis)).transpose()?;
        let written = sqlx::query(
            "insert into vg_ledger (tenant, job, step, ordinal, provider, model, amount, basis, at) \
             values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (job, step, ordinal) do nothing",
        )
        .bind(account.tenant.as_str())
        .bind(job.blob())
        .bind(cost.map(|cost| cost.step.as_str()))
        .bind(cost.map(|cost| i64::from(cost.ordinal)))
        .bind(cost.map(|cost| cost.provider.to_string()))
        .bind(cost.map(|cost| cost.model.to_string()))
        .bind(amount.micros())
        .bind(basis)
        .bind(self.now)
        .execute(&mut self.conn)
        .await?
        .rows_affected();
        if written > 0 && account.spent.per > 0 {
            account.spent.count = account.spent.count.saturating_add(amount.micros());
        }
        Ok(written > 0)
    }

    /// Counts what is spent in another window than before: adds up the ledger rows in it. At the
    /// turn of a window there are none yet, so this is cheap; it is exact if the clock was set back.
    async fn turn_to(&mut self, account: &mut Account, mut next: Counter) -> Outcome<()> {
        if account.spent.is_same(next) {
            return Ok(());
        }
        let from = next.window.saturating_mul(next.per);
        next.count = sqlx::query_scalar(
            "select coalesce(sum(amount), 0) from vg_ledger where tenant = ? and at >= ? and at < ?",
        )
        .bind(account.tenant.as_str())
        .bind(from)
        .bind(from.saturating_add(next.per))
        .fetch_one(&mut self.conn)
        .await?;
        account.spent = next;
        Ok(())
    }
}
