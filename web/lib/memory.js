/** What this tab keeps: the newest few, since the page shares its room. */

const KEYS = "loraclr keys"; // the oldest first
const MOST = 20;

/** Keeps a text in place of the former one of this key, and drops the oldest beyond `most`. */
export function keep(storage, key, text, most = MOST) {
  const others = JSON.parse(storage.getItem(KEYS) ?? "[]").filter((other) => other !== key);
  const dropped = others.splice(0, others.length + 1 - most);
  for (const old of [key, ...dropped]) storage.removeItem(old);
  storage.setItem(KEYS, JSON.stringify([...others, key]));
  storage.setItem(key, text);
}
