/** Curves of a training, as numbers. */

/** One step's loss says little: noise and picture are drawn anew. Half of this many steps' weight is older. */
const HALF_LIFE = 10;

/** Each value averaged with those before it, the nearer the more; null is left out. */
export function smooth(values, halfLife = HALF_LIFE) {
  const keep = 0.5 ** (1 / halfLife);
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return null;
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}

/** "42 s", "5 min", "2 h 5 min". */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
