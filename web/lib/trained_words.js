/** The phrase that a LoRA was trained on, as `loraclr_core/trained_words.py` finds it: a table in tests/ holds both to it. */
import { LEAD_IN, promptSyntax } from "./words.js";

const FIELDS = (
  "triggerphrase triggerphrases triggerwords triggerword trainedwords trainedword activationtext activationtags" +
  " activationwords trigger triggers instanceprompt keywords"
).split(" ");
const PREFIX = /^(modelspec|ss|ssmd|civitai)[._]/;
const NOTHING = ["", "none", "null", "n/a", "-", "false", "true", "no", "yes", "[]", "{}"];
const [NEARLY_ALL, AHEAD, FEW_CAPTIONS, LONGEST_TAG, LONGEST_PHRASE] = [0.9, 0.75, 3, 4, 500];

const ADJECTIVES =
  "((black|white|grey|gray|red|blue|green|brown|blonde|blond|pink|purple|orange|yellow|silver|golden|aqua|dark|light|pale" +
  "|multicolored|colored|long|short|medium|very|large|small|huge|open|closed|parted|bare|blunt|wavy|curly|straight|upper" +
  "|lower|full|cowboy|front|side|back|close-?up|simple|gradient|blurry|best|high|good|normal|low|worst|male|female) )*";
const GENERIC = whole(
  String.raw`(\d+\+? ?|multiple |no )?(girl|boy|other|woman|women|man|men|person|people|human|female|male|child|character)s?`,
  String.raw`solo( focus)?|looking .+|facing .+|from (above|below|behind|side)|score \d.*|rating.*|.+ (text|username|background)`,
  `${ADJECTIVES}(hair|eyes?|bangs|breasts|skin|lips|mouth|face|ears|teeth|nose|body|shoulders|legs|arms)`,
  `${ADJECTIVES}(shirt|dress|skirt|gloves|boots|shoes|jacket|pants|hat|ribbon|bow|collar|sleeves|jewelry|earrings)`,
  `${ADJECTIVES}(background|focus|quality|view|shot|portrait|close-?up)`,
  "ahoge|blush|smil(e|ing)|standing|sitting|lying|holding|navel|cleavage|thighhighs|indoors|outdoors|day|night|sky",
  "safe|sensitive|questionable|explicit|general|masterpiece|highres|absurdres|lowres|newest|recent|realistic",
  String.raw`photorealistic|photo( \(medium\))?|3d|anime|monochrome|gr[ae]yscale|comic|sketch|lineart|traditional media`,
  "signature|watermark|artist name|simple|photograph|picture|image|illustration|painting|drawing",
);
const GENERIC_FOLDER = whole(
  "(new |my |training |train )?(img|image|pic|picture|photo|data|dataset|train|training|input|instance|subject|lora|concept" +
    "|character|folder|crop|cropped|resize|resized|raw|all|main|default|close|closeup|fullbody)s?",
  String.raw`[\s\d.x×-]*|v[\d.]+`,
);

/** In the host's prompt syntax; empty where the file does not say one. */
export function trainedWords(metadata) {
  const given = ofFields(metadata);
  if (given) return given;
  const dataset = datasetOf(metadata);
  const phrases = new Map();
  for (const folder of dataset) if (trainedOn(folder)) phrases.set(spelled(folder.phrase), folder.phrase);
  if (phrases.size === 1) return promptSyntax([...phrases.values()][0]);
  return phrases.size ? "" : promptSyntax(tagThatStandsOut(dataset));
}

/** The class word that Train Concept LoRA wrote into a file; empty for other files. */
export function classWordIn(metadata) {
  const word = object(metadata["loraclr.training"]).class_word;
  return typeof word === "string" && word.length <= LONGEST_PHRASE ? promptSyntax(word) : "";
}

function ofFields(metadata) {
  const field = (key) => key.toLowerCase().replace(PREFIX, "").replace(/[^a-z]/g, "");
  const keys = Object.keys(metadata).filter((key) => FIELDS.includes(field(key)));
  keys.sort((one, other) => FIELDS.indexOf(field(one)) - FIELDS.indexOf(field(other)));
  for (const key of keys) {
    const listed = json(metadata[key]);
    const values = Array.isArray(listed) ? listed : [typeof listed === "string" ? listed : metadata[key]];
    const texts = values.filter((each) => typeof each === "string" && each.length <= LONGEST_PHRASE);
    const said = texts.filter((each) => !NOTHING.includes(each.trim().toLowerCase()));
    const [phrase] = said.map(promptSyntax).filter(Boolean);
    if (phrase) return field(key) === "instanceprompt" ? phrase.replace(LEAD_IN, "") : phrase;
  }
  return "";
}

/** The training folders but for regularisation: phrase, tags (a Map of counts), captions. */
function datasetOf(metadata) {
  const [dirs, counts] = [object(metadata.ss_dataset_dirs), object(metadata.ss_tag_frequency)];
  const subsets = new Map(subsetsOf(metadata.ss_datasets).map((each) => [each.image_dir, each]));
  const leftOut = new Set(Object.keys(object(metadata.ss_reg_dataset_dirs)));
  for (const [name, subset] of subsets) if (subset.is_reg) leftOut.add(name);
  const names = [...new Set([...Object.keys(dirs), ...Object.keys(counts), ...subsets.keys()])];
  return names
    .filter((name) => !leftOut.has(name) && !leftOut.has(name.replace(/ \(\d+\)$/, "")))
    .map((name) => {
      const tags = tagsOf(counts[name]);
      const images = dirs[name]?.img_count;
      const captions = isCount(images) ? images : Math.max(0, ...tags.values());
      return { phrase: asCaptionsHaveIt(phraseOf(name, subsets.get(name)), tags), tags, captions };
    });
}

function subsetsOf(text) {
  const datasets = json(text ?? "[]");
  const found = Array.isArray(datasets) ? datasets.flatMap((each) => each?.subsets ?? []) : [];
  return found.filter((each) => each?.image_dir);
}

function phraseOf(folder, subset) {
  const tokens = subset?.class_tokens;
  const phrase = typeof tokens === "string" && tokens.trim() ? tokens : (/^\s*\d+\s*_(.*)$/.exec(folder)?.[1] ?? "");
  const generic = GENERIC_FOLDER.test(spelled(phrase)) || GENERIC.test(spelled(phrase));
  return generic ? "" : phrase.trim();
}

function asCaptionsHaveIt(phrase, tags) {
  const wanted = phrase.toLowerCase();
  const hasIt = !tags.size || [...tags.keys()].some((tag) => tag.toLowerCase().includes(wanted));
  return hasIt ? phrase : phrase.replaceAll("_", " ");
}

function tagsOf(counts) {
  const found = new Map();
  for (const [written, count] of Object.entries(record(counts))) {
    const tag = spaced(written).replace(LEAD_IN, "");
    if (tag && isCount(count)) found.set(tag, (found.get(tag) ?? 0) + count);
  }
  return found;
}

/** Whether the folder's captions say its phrase; where there are none, its phrase is the caption of each picture. */
function trainedOn({ phrase, tags, captions }) {
  if (!phrase) return false;
  const saying = (word) => sum([...tags].filter(([tag]) => wordsOf(tag).has(word)).map(([, count]) => count));
  return !tags.size || [...wordsOf(phrase)].every((word) => saying(word) >= NEARLY_ALL * captions);
}

function tagThatStandsOut(dataset) {
  const counts = new Map();
  for (const { tags } of dataset) for (const [tag, count] of tags) counts.set(tag, (counts.get(tag) ?? 0) + count);
  const telling = [...counts].filter(([tag]) => !GENERIC.test(spelled(tag))).sort((one, other) => other[1] - one[1]);
  const captions = sum(dataset.map((folder) => folder.captions));
  const [[tag, count], [, following]] = [telling[0] ?? ["", 0], telling[1] ?? ["", 0]];
  const standsOut = count >= NEARLY_ALL * captions && following <= AHEAD * count;
  return captions >= FEW_CAPTIONS && standsOut && tag.split(" ").length <= LONGEST_TAG ? tag : "";
}

function whole(...patterns) {
  return new RegExp(`^(${patterns.join("|")})$`);
}

const spaced = (text) => text.split(/\s+/).filter(Boolean).join(" ");
const spelled = (phrase) => spaced(phrase.replaceAll("_", " ").replaceAll("\\", "").toLowerCase());
const wordsOf = (phrase) => new Set(spelled(phrase).match(/[^\s,.()]+/g) ?? []);
const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);
const isCount = (value) => Number.isInteger(value) && value > 0;

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const record = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

function object(text) {
  return record(json(text ?? "{}"));
}
