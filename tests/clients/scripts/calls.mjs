// What calls.py is, for scripts that node runs in the folder of the environment whose packages they use.

import { createRequire } from "node:module";
import { join } from "node:path";

export const packages = createRequire(join(process.cwd(), "script.js"));
export const versionOf = (name) => packages(join(process.cwd(), "node_modules", name, "package.json")).version;
export const given = JSON.parse(process.argv[2]);
export const [BASE, KEY_BASE, BUSY_BASE] = ["url", "key_url", "busy_url"].map((name) => `${given[name]}/v1`);
export const BUSY_KEY = given.busy_key;
export const HELLO = "Hello! What is your name?";
export const WEATHER = "What is the weather in Oslo?";
export const TEXTS = ["Hi there!", "Good day!"];

/** The class, the HTTP status and the message of the error that a call must raise. */
export async function caught(kind, call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof kind) && !kind.isInstance?.(error)) throw error;
    return [error.constructor.name, error.status ?? error.statusCode, error.message];
  }
  return ["no error", null, ""];
}

/** Make all calls; print what they brought. */
export async function show(version, calls) {
  const results = { version };
  for (const [name, call] of Object.entries(calls)) {
    try {
      results[name] = await call();
    } catch (error) {
      results[name] = { failed: `${error.constructor.name}: ${error.message}` }; // the test shows it under the call's name
    }
  }
  process.stdout.write(JSON.stringify(results));
}
