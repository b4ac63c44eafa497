/** A merge's errors as bars beside those of the plain model. */

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** errors: {base, sum, merged} -> what to draw, as shares of the base; nothing where none were measured. */
export function bars({ base, sum, merged }) {
  if (!base) return [];
  return [
    { title: "plain model", share: 1, colour: "#888" },
    { title: "stacked", share: sum / base, colour: "#d55e00" },
    { title: "merged", share: merged / base, colour: "#009e73" },
  ];
}
