// Calls of the controller's API. Everything is decided there; a refusal is shown as it comes.
import type { components } from "./schema";

type Schemas = components["schemas"];
export type Failure = Schemas["Failure"];
export type Vm = Schemas["VmView"];
export type Host = Schemas["HostView"];
export type Job = Schemas["JobView"];
export type Status = Schemas["Status"];
export type Session = Schemas["SessionView"];
export type Changes = Schemas["ChangesView"];

/** What the controller refused, or that it was not reached. */
export class Refused extends Error {
  constructor(readonly status: number, readonly failure: Failure) {
    super(failure.what);
  }
}

/** Told when a request finds that nobody is logged in any more. */
let onLoggedOut = () => {};
export function whenLoggedOut(told: () => void) {
  onLoggedOut = told;
}

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, { code: "CONTROLLER_UNREACHABLE", what: "", because: "", fix: "" } as unknown as Failure);
  }
  if (!answer.ok) {
    const failure = (await answer.json()) as Failure;
    if (answer.status === 401 && path !== "/v1/session") onLoggedOut();
    throw new Refused(answer.status, failure);
  }
  return answer.status === 204 ? (undefined as T) : ((await answer.json()) as T);
}

export const get = <T>(path: string) => call<T>("GET", path);
export const post = <T>(path: string, body: unknown = {}) => call<T>("POST", path, body);

/** The lines of an endless answer, until `stop`; begins anew, more and more slowly, when it breaks. */
export function follow<T>(path: string, told: (line: T) => void, lost: () => void): () => void {
  const stop = new AbortController();
  let pause = 500;
  const run = async () => {
    while (!stop.signal.aborted) {
      try {
        const answer = await fetch(path, { signal: stop.signal });
        if (answer.status === 401) return onLoggedOut();
        if (!answer.ok || !answer.body) throw new Error(String(answer.status));
        pause = 500;
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          const lines = (rest + part.value).split("\n");
          rest = lines.pop() ?? "";
          for (const line of lines) if (line.trim()) told(JSON.parse(line) as T);
        }
      } catch {
        if (stop.signal.aborted) return;
      }
      lost();
      await new Promise((go) => setTimeout(go, pause));
      pause = Math.min(pause * 2, 15_000);
    }
  };
  void run();
  return () => stop.abort();
}
