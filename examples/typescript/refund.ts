// A workflow of your own that asks a person, and waits for as long as they take.
//
// Start the service with its engine open to this machine's other processes, then this
// (Node 22.18 or later runs TypeScript as it is):
//
//     APPROVALS_ENGINE_HTTP=127.0.0.1:8001 uv run approvals dev
//     cd examples/typescript && npm install
//     node refund.ts refund-44 ann@localhost
//
// Stop it while it waits and start it again with the same arguments: it goes on where
// it was, and nobody is asked twice.

import { type Context, Resonate } from "@resonatehq/sdk";

const ENGINE = process.env.ENGINE_URL ?? "http://127.0.0.1:8001";
// How long the whole refund may take, in ms. What it asks for lives no longer than it does.
const LIFE = 15 * 24 * 3600 * 1000;

type Report = { status: "approved" | "declined" | "expired" | "withdrawn" | "undeliverable" | "invalid" };

function* refund(ctx: Context, amount: string, approver: string) {
  const request = {
    subject: `Refund ${amount} to Ana Lima`,
    message: "The parcel arrived damaged. This is day 12 of 30.",
    facts: { Amount: amount },
    approvers: [approver],
    requester: { email: "bob@localhost", name: "Bob Smith" },
    due: "P3D",
  };
  // "approvals" is the group of the service's workers.
  const asking = ctx.options({ target: "approvals", timeout: LIFE });
  const report = yield* ctx.rpc<Report>("approval", request, asking);
  if (report.status !== "approved") return `not paid: ${report.status}`;
  return yield* ctx.run(pay, amount);
}

/** Do what needed the approval; journaled, so a replay does not pay again. */
function pay(_: Context, amount: string): string {
  return `paid ${amount}`;
}

const [id, approver] = process.argv.slice(2);
if (id === undefined || approver === undefined) throw new Error("usage: node refund.ts ID APPROVER");

const resonate = new Resonate({ url: ENGINE, token: process.env.ENGINE_TOKEN, group: "refunds" });
resonate.register(refund);
const started = await resonate.beginRun(id, refund, "120.00 EUR", approver, resonate.options({ timeout: LIFE }));
console.log(`${id} waits for ${approver}`);
console.log(`${id}: ${await started.result()}`);
await resonate.stop();
