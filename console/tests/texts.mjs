// Every text is there in every language, with the same placeholders; every text that is used is there, and none is left over.
import { FluentResource } from "@fluent/bundle";
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";

const read = (path) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");
const variables = (value) => [...new Set([...JSON.stringify(value).matchAll(/"type":"var","name":"([^"]+)"/g)].map((found) => found[1]))].sort();

const catalogues = readdirSync(new URL("../locales", import.meta.url)).map((file) => {
  const { body } = new FluentResource(read(`locales/${file}`));
  const ids = body.map((message) => message.id);
  assert.equal(new Set(ids).size, ids.length, `${file} has a text twice`);
  return [file, new Map(body.map((message) => [message.id, variables(message.value)]))];
});
const [[, english], ...others] = catalogues;
for (const [file, texts] of others) assert.deepEqual([...texts].sort(), [...english].sort(), `${file} differs from English`);

const sources = readdirSync(new URL("../src", import.meta.url), { recursive: true }).filter((file) => /[.](svelte|ts)$/.test(file));
const code = sources.map((file) => read(`src/${file}`)).join("\n");
const { schemas } = JSON.parse(read("../docs/openapi.json")).components;
const states = ["VmState", "HostState", "JobState"].flatMap((name) => {
  const of = schemas[name];
  return (of.enum ?? of.oneOf.flatMap((one) => one.enum ?? [one.const])).map((state) => `state-${state}`);
});
const themes = ["auto", "light", "dark"].map((theme) => `theme-${theme}`);
const needed = new Set([...states, ...themes]);
for (const id of needed) assert.ok(english.has(id), `there is no text ${id}`);
for (const id of english.keys()) assert.ok(needed.has(id) || code.includes(`"${id}"`), `nothing uses the text ${id}`);
for (const [, id] of code.matchAll(/\bt\("([^"]+)"/g)) assert.ok(english.has(id), `there is no text ${id}`);
