/** What the live view draws, as numbers: colours, overlays, the loss as a line. */

/** One colour per concept, told apart by most colour-blind people too (Okabe and Ito). */
export const COLOURS = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [204, 121, 167],
];
export const colourOf = (concept) => COLOURS[concept % COLOURS.length];
export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

/** Bytes in base64 -> a share of 0…1 for each. */
export function unpack(base64) {
  return Float32Array.from(atob(base64), (char) => char.charCodeAt(0) / 255);
}

/** RGBA pixels of several concepts' maps, each in its colour and as opaque as it is strong, up to `strongest`. */
export function overlay(maps, concepts, strongest) {
  const pixels = new Uint8ClampedArray(4 * (maps[0]?.length ?? 0));
  for (let place = 0; place < pixels.length / 4; place++) {
    const total = maps.reduce((sum, map) => sum + map[place], 0);
    if (!total) continue;
    for (const channel of [0, 1, 2]) {
      const mixed = maps.reduce((sum, map, i) => sum + map[place] * colourOf(concepts[i])[channel], 0);
      pixels[4 * place + channel] = mixed / total;
    }
    pixels[4 * place + 3] = 255 * strongest * Math.min(1, Math.max(...maps.map((map) => map[place])));
  }
  return pixels;
}

/** The size in pixels of a frame's canvas, [width, height]: of its picture, or where there is none of its masks, enlarged. */
export function sizeOf(frame, picture) {
  if (picture) return [picture.naturalWidth, picture.naturalHeight];
  const [height, width] = frame.mask_size ?? [0, 0];
  return [8 * width, 8 * height];
}

/** Points of an SVG polyline through the values, the highest at the top; empty for fewer than two. Null is left out. */
export function line(values, width, height) {
  const known = values.filter(Number.isFinite);
  if (known.length < 2) return "";
  const low = Math.min(...known);
  const range = Math.max(...known) - low || 1;
  return values
    .map((value, i) => [(i / (values.length - 1)) * width, height - ((value - low) / range) * height, value])
    .filter(([, , value]) => Number.isFinite(value))
    .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`)
    .join(" ");
}
