/** The words of a trigger, as `loraclr_core/words.py` reads them: a table in tests/ holds both to the same. */

export const LEAD_IN =
  /^((an? |the )?(photo|photograph|picture|image|painting|drawing|rendering)s? of )?(an? |the )?/i;
const LORA_TAG = /<[^<>:]*:[^<>]*>/g;
const EMBEDDING = /^embedding:/i;
const WEIGHT = /:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*(?=\))/g;
const SYNTAX = /\([^()]*:\s*[+-]?[\d.]+\s*\)|(?<!\\)[()]/g;
const PARENTHESIS = /(?<!\\)[()]/g;
const SEPARATORS = /[,，、;\n]/;
const EDGES = String.raw`\s.:!?"'“”‘’。\[\]`;
const WORD_EDGES = new RegExp(`^[${EDGES}]+|[${EDGES}]+$`, "g");
const PHRASE_EDGES = new RegExp(`^[${EDGES},，;]+|[${EDGES},，;]+$`, "g");

const spaced = (text) => text.split(/\s+/).filter(Boolean).join(" ");

/** The last plain word of the first part that has several; empty where there is none. */
export function classWord(trigger) {
  for (const part of trigger.replace(LORA_TAG, " ").replace(WEIGHT, "").split(SEPARATORS)) {
    const words = wordsOf(spaced(part.replace(PARENTHESIS, " ")).replace(LEAD_IN, ""));
    if (!words.slice(1).some((word) => !EMBEDDING.test(word))) continue;
    const last = words.findLast((word) => !EMBEDDING.test(word));
    return part.includes("\\") || /[{}|]/.test(last) ? "" : last;
  }
  return "";
}

/** What a prompt calls a concept without a name of its own; empty where there are no words at all. */
export function nameOf(trigger, classWord) {
  return spaced((classWord || plain(trigger)).replace(/[{}]/g, "")) || (trigger && "concept");
}

/** The name with a number that makes it unlike others: `cat` → `cat 2`. */
export function unlike(name, others) {
  let number = 2;
  while (others.includes(`${name} ${number}`)) number += 1;
  return `${name} ${number}`;
}

/** Words of a file as a prompt must have them: parentheses escaped but for weights, LoRA tags gone. */
export function promptSyntax(words) {
  const escaped = words.replace(LORA_TAG, "").replace(SYNTAX, (found) => (found.length > 1 ? found : `\\${found}`));
  return spaced(escaped).replace(/^[ ,，;]+|[ ,，;]+$/g, "");
}

function plain(trigger) {
  const bare = trigger.replace(LORA_TAG, "").replace(WEIGHT, "").replace(PARENTHESIS, "");
  return bare.replace(/\\([()])/g, "$1").replace(PHRASE_EDGES, "");
}

function wordsOf(text) {
  const words = text.split(/\s+/).map((word) => word.replace(WORD_EDGES, ""));
  return words.filter((word) => /\p{L}/u.test(word) || word.includes("{"));
}
