//! No statement on the hot paths may cost more as history grows (rule Q8): their query plans, held
//! fast. Indexes of what is live are partial, so a walk over one of them is not a walk over history.

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::open::{self, Opener};
use super::{job, outbox, read, wake, worker};

async fn plan(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let explain = AssertSqlSafe(format!("explain query plan {sql}"));
    sqlx::query(explain).fetch_all(conn).await.unwrap().iter().map(|row| row.get("detail")).collect()
}

#[tokio::test]
async fn no_hot_statement_walks_over_history() {
    let directory = tempfile::tempdir().unwrap();
    let mut conn = Opener::new(&directory.path().join("vidgen.db")).unwrap().writer().await.unwrap();
    open::migrate(&mut conn).await.unwrap();
    let indexed = [
        ("claim", worker::HEAD, "vg_queue_ready"),
        ("claim", worker::CLAIM, "vg_queue_ready"),
        ("promote", worker::DUE, "vg_queue_waiting"),
        ("promote", worker::NEXT_DUE, "vg_queue_waiting"),
        ("beat", worker::SUM, "vg_queue_running"),
        ("beat", worker::FLAGGED, "vg_queue_flagged"),
        ("rescue", worker::ORPHANS, "vg_queue_running"),
        ("rescue", outbox::ORPHANS, "vg_delivery_owned"),
        ("fence", job::FENCED, "q USING PRIMARY KEY"),
        ("find", job::FIND, "q USING PRIMARY KEY"),
        ("deliver", outbox::ENDPOINTS, "vg_endpoint_due"),
        ("deliver", outbox::HEAD, "vg_delivery_due"),
        ("deliver", outbox::NEXT, "vg_delivery_next"),
        ("list", read::LIST_ALL, "vg_job_of_tenant"),
        ("list", read::LIST_ENDED, "vg_job_ended_of_tenant"),
        ("list", read::LIST_LIVE, "vg_queue_of_tenant"),
        ("stats", read::STATS, "vg_queue_running"),
        ("expire", read::OLD, "vg_job_old"),
        ("expire", read::EXTRA, "vg_job_old_of_tenant"),
        ("look", wake::LOOK, "vg_queue_ready"),
    ];
    for (what, sql, index) in indexed {
        let plan = plan(&mut conn, sql).await;
        assert!(plan.iter().any(|line| line.contains(index)), "{what} does not use {index}: {plan:#?}");
        for line in &plan {
            let small = ["SCAN m", "SCAN vg_worker", "SCAN CONSTANT"];
            let live = ["vg_queue_", "vg_delivery_due", "vg_delivery_next", "vg_delivery_flying", "vg_delivery_owned"];
            // The excess of one tenant, chosen by index before.
            let chosen = line == "SCAN j" && plan.iter().any(|line| line == "CO-ROUTINE j");
            let walks = line.starts_with("SCAN")
                && !chosen
                && !small.iter().any(|table| line.starts_with(table))
                && !live.iter().any(|index| line.contains(index));
            assert!(!walks, "{what} walks over a table: {plan:#?}");
            // A claim sorts the rows it has already chosen, 500 at most.
            let sorts = line.contains("TEMP B-TREE") && sql != worker::HEAD;
            assert!(!sorts, "{what} sorts what it finds: {plan:#?}");
        }
    }
}
