//! A workflow of your own that asks a person, and waits for as long as they take.
//!
//! Start the service with its engine open to this machine's other processes, then this:
//!
//! ```sh
//! APPROVALS_ENGINE_HTTP=127.0.0.1:8001 uv run approvals dev
//! cd examples/rust && cargo run -- refund-45 ann@localhost
//! ```
//!
//! Stop it while it waits and start it again with the same arguments: it goes on where
//! it was, and nobody is asked twice.

use std::{env, time::Duration};

use resonate_sdk::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How long the whole refund may take. What it asks for lives no longer than it does.
const LIFE: Duration = Duration::from_secs(15 * 24 * 3600);

#[derive(Serialize, Deserialize)]
struct Refund {
    amount: String,
    approver: String,
}

#[derive(Deserialize)]
struct Report {
    status: String,
}

#[resonate_sdk::function]
async fn refund(ctx: &Context, asked: Refund) -> Result<String> {
    let request = json!({
        "subject": format!("Refund {} to Ana Lima", asked.amount),
        "message": "The parcel arrived damaged. This is day 12 of 30.",
        "facts": {"Amount": asked.amount},
        "approvers": [asked.approver],
        "requester": {"email": "bob@localhost", "name": "Bob Smith"},
        "due": "P3D",
    });
    // This SDK sends arguments as they are given, and the service takes a list of one.
    // "approvals" is the group of its workers.
    let asking = ctx.rpc::<Report>("approval", &vec![request]);
    let report = asking.target("approvals").timeout(LIFE).await?;
    if report.status != "approved" {
        return Ok(format!("not paid: {}", report.status));
    }
    ctx.run(pay, asked.amount).await
}

/// Do what needed the approval; journaled, so a replay does not pay again.
#[resonate_sdk::function]
async fn pay(amount: String) -> Result<String> {
    Ok(format!("paid {amount}"))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [id, approver] = arguments.as_slice() else {
        panic!("usage: refund ID APPROVER");
    };
    let resonate = Resonate::new(ResonateConfig {
        url: Some(env::var("ENGINE_URL").unwrap_or("http://127.0.0.1:8001".into())),
        token: env::var("ENGINE_TOKEN").ok(),
        group: Some("refunds".into()),
        ..Default::default()
    });
    resonate.register(refund)?;
    resonate.register(pay)?;
    let asked = Refund { amount: "120.00 EUR".into(), approver: approver.clone() };
    println!("{id} waits for {approver}");
    println!("{id}: {}", resonate.run(id, refund, asked).timeout(LIFE).await?);
    resonate.stop().await
}
