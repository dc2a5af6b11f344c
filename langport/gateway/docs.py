"""The pages for people: /docs, drawn in the browser from /openapi.json, and the front page.

Nothing is loaded from another host.
"""

from __future__ import annotations

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #0a7d5c; }
@media (prefers-color-scheme: dark) { :root { --accent: #4fd1a5; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
a, .method { color: var(--accent); }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: 6px; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem; }
summary { cursor: pointer; }
.method { font-weight: 700; display: inline-block; min-width: 3.6rem; }
.note { opacity: .75; margin-left: .6rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; }
td { border-top: 1px solid var(--line); }
"""

_SCRIPT = """
"use strict";
const main = document.querySelector("main");
function add(parent, tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return parent.appendChild(node);
}
function resolve(api, schema) {
  while (schema && schema.$ref) {
    schema = schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
  }
  return schema || {};
}
function typeName(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.filter(one => one.type !== "null").map(typeName).join(" | ");
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return "list of " + typeName(schema.items || {});
  return Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type || "any";
}
function rows(box, api, schema, parameters) {
  const required = new Set(schema.required || []);
  const ofPath = (parameters || []).map(p => [p.name, p.schema || {}, p.required, p.description]);
  const ofBody = Object.entries(schema.properties || {}).map(
    ([name, field]) => [name, field, required.has(name), field.description]);
  const fields = ofPath.concat(ofBody);
  if (!fields.length) return;
  const table = add(box, "table");
  const head = add(table, "tr");
  for (const title of ["parameter", "type", "meaning"]) add(head, "th", title);
  for (const [name, field, isRequired, description] of fields) {
    const row = add(table, "tr");
    add(add(row, "td"), "code", name);
    add(row, "td", typeName(field) + (isRequired ? ", required" : ""));
    add(row, "td", description || "");
  }
}
function curl(method, path, body, isOpen) {
  const parts = ["curl " + location.origin + path];
  if (method !== "GET") parts[0] = "curl -X " + method + " " + location.origin + path;
  if (!isOpen) parts.push("-H 'Authorization: Bearer YOUR_KEY'");
  if (body !== undefined) {
    parts.push("-H 'Content-Type: application/json'");
    parts.push("-d '" + JSON.stringify(body).replace(/'/g, "'\\\\''") + "'");
  }
  return parts.join(" \\\\\\n  ");
}
function show(api) {
  document.querySelector("#about").textContent = api.info.description || "";
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [verb, operation] of Object.entries(item)) {
      const method = verb.toUpperCase(), box = add(main, "details"), title = add(box, "summary");
      add(title, "span", method, "method");
      add(title, "code", path);
      add(title, "span", operation.summary || "", "note");
      if (operation.description) add(box, "p", operation.description);
      const media = ((operation.requestBody || {}).content || {})["application/json"] || {};
      add(box, "pre", curl(method, path, media.example, operation.security && !operation.security.length));
      rows(box, api, resolve(api, media.schema), operation.parameters);
    }
  }
}
fetch("openapi.json").then(answer => answer.ok ? answer.json() : Promise.reject(answer.status)).then(show)
  .catch(why => add(main, "p", "openapi.json could not be read: " + why));
"""

PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LangPort API</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>LangPort API</h1><p id="about"></p>
<p>Machine-readable: <a href="openapi.json">openapi.json</a></p><main></main>
<script>{_SCRIPT}</script></body></html>
""".encode()

INDEX = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LangPort</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><h1>LangPort</h1>
<p>This server answers OpenAI's API. Give clients its address and <code>/v1</code> as the base URL.</p>
<ul><li><a href="docs">Every path and parameter</a></li><li><a href="v1/models">The served models</a></li>
<li><a href="ready">Is it ready?</a></li><li><a href="metrics">Metrics</a></li></ul></body></html>
""".encode()
