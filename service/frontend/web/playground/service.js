// The HTTP API: requests, the key that was typed in, and errors in words.

const KEY = "convmlp-api-key";

export class Problem extends Error {
  constructor(title, detail, { status = 0, retryAfterS = null } = {}) {
    super(detail);
    Object.assign(this, { title, detail, status, retryAfterS });
  }
}

// The key is kept until the tab is closed.
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
};

/** The response of a request. Raises Problem for an error, and where the service cannot be reached. */
export async function call(path, { headers, ...options } = {}) {
  const value = key.get();
  let response;
  try {
    response = await fetch(path, { ...options, headers: value ? { ...headers, Authorization: `Bearer ${value}` } : headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("Cannot reach the service", "Check that it is running, then try again.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const about = { status: response.status, retryAfterS: Number(response.headers.get("retry-after")) || null };
  const kind = response.headers.get("content-type") ?? "";
  try {
    if (kind.includes("json")) {
      const { title, detail } = await response.json();
      return new Problem(title ?? `The service answered ${response.status}`, detail ?? "", about);
    }
  } catch {
    // The answer ended early, or is not of its declared type: its status is all that is known.
  }
  return new Problem(`The service answered ${response.status}`, response.statusText, about);
}

/** Milliseconds by stage, in order, and the size of the batch, from the header Server-Timing. */
export function serverTiming(header) {
  const stages = {};
  let batch = null;
  for (const entry of (header ?? "").split(",")) {
    const [name, ...fields] = entry.trim().split(";");
    const values = Object.fromEntries(fields.map((field) => field.trim().split("=")));
    if (values.dur !== undefined) stages[name] = Number(values.dur);
    if (name === "batch") batch = Number(values.desc);
  }
  return { stages, batch };
}
