/** What a node's result is made of. */

/**
 * The part of a prompt, as the server gets it, that leads to a node: a text that is the same for the same nodes, values and
 * links, whatever the nodes' ids.
 */
export function sourceOf(prompt, id) {
  const numbers = new Map();
  const nodes = [];
  const numberOf = (id) => {
    if (numbers.has(id)) return numbers.get(id);
    const number = numbers.size;
    numbers.set(id, number);
    const { class_type, inputs } = prompt[id];
    nodes[number] = [class_type];
    for (const name of Object.keys(inputs).sort()) {
      const value = inputs[name];
      nodes[number].push([name, isLink(value, prompt) ? { link: [numberOf(value[0]), value[1]] } : value]);
    }
    return number;
  };
  if (prompt[id]) numberOf(id);
  return JSON.stringify(nodes);
}

const isLink = (value, prompt) => Array.isArray(value) && prompt[value[0]] !== undefined;
