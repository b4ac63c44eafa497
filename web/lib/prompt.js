/** Prompts with concepts by name in braces, as `loraclr_core/braces.py` and `loraclr_core/sampler/prompt.py` read them. */

const MARK = /(?<!\\)\{([^{}]*)(?<!\\)\}/g;

const list = (names) => names.map((name) => `{${name}}`).join(", ");

const marked = (text) => [...text.matchAll(MARK)].map((mark) => mark[1].trim());

/** Names in braces that no concept has, and braces without a partner, in words. */
function markProblems(text, names) {
  const found = [];
  for (const name of new Set(marked(text))) {
    if (!names.includes(name)) found.push(`No concept is called {${name}}. There are: ${list(names) || "none yet"}.`);
  }
  if (/(?<!\\)[{}]/.test(text.replace(MARK, "")))
    found.push("A brace has no partner. Write literal braces as \\{ and \\}.");
  return found;
}

/** What is wrong with a prompt that is to show all of these concepts, in words; empty where nothing is. */
export function problems(text, names) {
  const found = markProblems(text, names);
  const missing = names.filter((name) => !marked(text).includes(name));
  if (missing.length) found.push(`Not in the prompt yet: ${list(missing)}.`);
  return found;
}

/** What is wrong with a prompt that says which of these concepts to merge; an empty one means all. */
export function choiceProblems(text, names) {
  if (!text.trim()) return [];
  const found = markProblems(text, names);
  if (!found.length && !marked(text).length)
    found.push(`Names no concept. Name those to merge (${list(names)}), or leave it empty to merge all.`);
  return found;
}

/** What is wrong with the lines that say what pictures of several concepts show; empty where nothing is. */
export function togetherProblems(text, names) {
  const found = markProblems(text, names);
  const nobody = text.split("\n").filter((line) => line.trim() && !marked(line).length);
  if (!found.length && nobody.length) found.push(`“${nobody[0].trim()}” names no concept. There are: ${list(names)}.`);
  return found;
}

/** What is wrong with a negative prompt, which is the same for every concept; empty where nothing is. */
export function negativeProblems(text, names) {
  const known = names.map((name) => name.toLowerCase());
  return [...text.matchAll(MARK)].map(([mark, name]) =>
    known.includes(name.trim().toLowerCase())
      ? `The negative prompt cannot name ${mark}: write plain words.`
      : `${mark} is taken as it stands.`,
  );
}

/** The name being typed after an open brace at the caret: where it starts, and what is there so far; or null. */
export function typing(text, caret) {
  const found = /(?<!\\)\{([^{}\n]*)$/.exec(text.slice(0, caret));
  return found && { start: found.index + 1, typed: found[1].trim() };
}

/** The names that go on from what is typed. */
export function offers(typed, names) {
  const wanted = typed.toLowerCase();
  return names.filter((name) => name.toLowerCase().startsWith(wanted));
}

/** The prompt with the name at the caret completed, and where the caret goes; null where no name is being typed. */
export function completed(text, caret, name) {
  const open = typing(text, caret);
  if (!open) return null;
  const { start } = open;
  const rest = text.slice(caret).replace(/^[^{}\s,.;:]*\}?/, "");
  return { text: `${text.slice(0, start)}${name}}${rest}`, caret: start + name.length + 1 };
}

/** The prompt with a concept's new name in place of its old one. */
export function renamed(text, before, after) {
  return text.replace(MARK, (mark, name) => (name.trim() === before ? `{${after}}` : mark));
}
