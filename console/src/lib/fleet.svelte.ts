// What the fleet is, as far as this page needs it: read page by page, and kept by the stream of changes.
import { follow, get, Refused, type Changes, type Host, type Status, type Vm } from "../api/client";
import { SvelteMap } from "svelte/reactivity";

const PAGE = 500;

export const vms = new SvelteMap<string, Vm>();
export const hosts = new SvelteMap<string, Host>();
export const about = $state<{ status: Status | null; lost: boolean; read: boolean }>({ status: null, lost: false, read: false });

async function all<T>(path: string, cursor: (row: T) => string, each: (rows: T[]) => void) {
  for (let after = ""; ; ) {
    const rows = await get<T[]>(`${path}?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`);
    each(rows);
    const last = rows.at(-1);
    if (!last || rows.length < PAGE) return;
    after = cursor(last);
  }
}

async function everything() {
  const seen = new Set<string>();
  await all<Vm>("/v1/vms", (vm) => `${vm.name}/${vm.host}/${vm.id}`, (rows) => {
    for (const vm of rows) {
      seen.add(vm.id);
      vms.set(vm.id, vm);
    }
  });
  for (const id of [...vms.keys()]) if (!seen.has(id)) vms.delete(id);
  const present = new Set<string>();
  await all<Host>("/v1/hosts", (host) => host.name, (rows) => {
    for (const host of rows) {
      present.add(host.name);
      hosts.set(host.name, host);
    }
  });
  for (const name of [...hosts.keys()]) if (!present.has(name)) hosts.delete(name);
  about.read = true;
}

async function one<T>(map: SvelteMap<string, T>, key: string, path: string) {
  try {
    map.set(key, await get<T>(path));
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 404) throw error;
    map.delete(key);
  }
}

const LONGEST_PAUSE = 15_000;
const STATUS_EVERY = 10_000;

/** Reads the fleet, and follows what changes, until it is told to stop. */
export function watch(): () => void {
  let stopped = false;
  const status = async () => {
    about.status = await get<Status>("/v1/status");
  };
  const read = async (changes: Changes) => {
    if (changes.all || changes.vms.length > PAGE) await everything();
    else {
      await Promise.all([
        ...changes.vms.map((id) => one(vms, id, `/v1/vms/${id}`)),
        ...changes.hosts.map((name) => one(hosts, name, `/v1/hosts/${name}`)),
      ]);
    }
    await status();
  };
  // What cannot be read is said, and everything is read again until it can: a page must not look up to date and be old.
  const told = async (changes: Changes) => {
    for (let pause = 1000; !stopped; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      try {
        await read(changes);
        about.lost = false;
        return;
      } catch {
        about.lost = true;
        changes = { all: true, vms: [], hosts: [] };
        await new Promise((go) => setTimeout(go, pause));
      }
    }
  };
  // One after another, so that an older answer never replaces a newer one.
  let turn = Promise.resolve();
  const stop = follow<Changes>(
    "/v1/changes",
    (changes) => (turn = turn.then(() => told(changes))),
    () => (about.lost = true),
  );
  // Jobs begin and end without a change of a VM or host.
  const timer = setInterval(() => status().catch(() => {}), STATUS_EVERY);
  return () => {
    stopped = true;
    clearInterval(timer);
    stop();
  };
}
