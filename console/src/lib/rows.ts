// Which rows of a long list are on the screen: only these are in the page.
export const ROW = 40;

/** The first row that is shown and the one after the last, with some to spare. */
export function shown(top: number, height: number, rows: number): [number, number] {
  const first = Math.max(0, Math.floor(top / ROW) - 10);
  const last = Math.min(rows, Math.ceil((top + height) / ROW) + 10);
  return [first, Math.max(first, last)];
}
