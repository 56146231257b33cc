// Texts in the reader's language. One catalogue for each language; what a language lacks, a test finds.
import { FluentBundle, FluentResource, type FluentVariable } from "@fluent/bundle";
import en from "../../locales/en.ftl?raw";
import ja from "../../locales/ja.ftl?raw";

const sources = { en, ja };
export type Language = keyof typeof sources;
export const languages = Object.keys(sources) as Language[];

function first(): Language {
  const kept = localStorage.getItem("language");
  const wanted = [kept, ...navigator.languages.map((tag) => tag.slice(0, 2))];
  return languages.find((language) => wanted.includes(language)) ?? "en";
}

function bundle(language: Language): FluentBundle {
  const made = new FluentBundle(language, { useIsolating: false });
  made.addResource(new FluentResource(sources[language]));
  return made;
}

const state = $state({ language: first() });
const current = $derived(bundle(state.language));

export const language = () => state.language;
export function speak(language: Language) {
  state.language = language;
  localStorage.setItem("language", language);
  document.documentElement.lang = language;
}

export function t(id: string, values?: Record<string, FluentVariable>): string {
  const message = current.getMessage(id);
  return message?.value ? current.formatPattern(message.value, values) : id;
}

/** The reader's own form of the language, for dates and numbers. */
const form = $derived(navigator.languages.find((tag) => tag.startsWith(state.language)) ?? state.language);

export const moment = (text: string | null | undefined) =>
  text ? new Intl.DateTimeFormat(form, { dateStyle: "medium", timeStyle: "medium" }).format(new Date(text)) : "";

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
/** A size in powers of 1024. */
export function size(bytes: number): string {
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  const number = new Intl.NumberFormat(form, { maximumFractionDigits: 1 }).format(bytes / 1024 ** power);
  return `${number} ${units[power]}`;
}
