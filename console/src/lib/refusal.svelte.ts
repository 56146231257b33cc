// What the controller refused last, for the dialog that shows it.
import { Refused, type Failure } from "../api/client";

export const refusal = $state<{ last: Failure | null }>({ last: null });

/** Does something that may be refused, and shows the refusal. */
export async function attempt<T>(act: () => Promise<T>): Promise<T | undefined> {
  try {
    return await act();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    refusal.last = error.failure;
    return undefined;
  }
}
