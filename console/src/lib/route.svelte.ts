// Where the reader is: the path, and the filters in the query.
const state = $state({ path: location.pathname, query: location.search });

addEventListener("popstate", () => {
  state.path = location.pathname;
  state.query = location.search;
});

export const path = () => state.path;
export const query = () => new URLSearchParams(state.query);

export function go(to: string, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  const url = new URL(to, location.href);
  state.path = url.pathname;
  state.query = url.search;
  if (!replace) document.getElementById("content")?.focus();
}

/** A link within the console: no page is loaded for it. */
export function within(node: HTMLAnchorElement) {
  const click = (event: MouseEvent) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    go(node.getAttribute("href") ?? "/");
  };
  node.addEventListener("click", click);
  return { destroy: () => node.removeEventListener("click", click) };
}
