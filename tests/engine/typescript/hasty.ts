// Prints what came of each request, as a JSON line, of a root that lives only so long:
//
//     node hasty.ts ID LIFE_MS REQUEST_JSON...

import { type Context, Resonate } from "@resonatehq/sdk";

const [id = "", life, ...requests] = process.argv.slice(2);

function* hasty(ctx: Context, requests: string[]) {
  const reports: unknown[] = [];
  for (const request of requests) {
    reports.push(yield* ctx.rpc("approval", JSON.parse(request), ctx.options({ target: "approvals" })));
  }
  return reports;
}

const resonate = new Resonate({ url: process.env.ENGINE_URL, token: process.env.ENGINE_TOKEN, group: "hasty" });
resonate.register(hasty);
const reports = await resonate.run(id, hasty, requests, resonate.options({ timeout: Number(life) }));
console.log(JSON.stringify(reports));
await resonate.stop();
