import assert from "node:assert/strict";
import { test } from "node:test";
import { colourOf, line, overlay, sizeOf, unpack } from "../../web/lib/frame.js";

test("bytes become shares", () => {
  assert.deepEqual([...unpack(btoa(String.fromCharCode(0, 255)))], [0, 1]);
});

test("each concept is drawn in its own colour, as opaque as it is strong", () => {
  const pixels = overlay([Float32Array.of(1, 0, 0), Float32Array.of(0, 0.5, 0)], [0, 1], 0.6);
  assert.deepEqual(Array.from(pixels.slice(0, 4)), [...colourOf(0), 153]);
  assert.deepEqual(Array.from(pixels.slice(4, 7)), colourOf(1));
  assert.ok(Math.abs(pixels[7] - 76) <= 1);
  assert.deepEqual(Array.from(pixels.slice(8)), [0, 0, 0, 0]);
});

test("where concepts overlap their colours mix", () => {
  const [red] = overlay([Float32Array.of(1), Float32Array.of(1)], [0, 1], 1);
  assert.ok(Math.abs(red - (colourOf(0)[0] + colourOf(1)[0]) / 2) <= 1);
});

test("the loss is a line from left to right, its highest value on top", () => {
  assert.equal(line([2, 1, 0], 100, 10), "0.0,0.0 50.0,5.0 100.0,10.0");
  assert.equal(line([1, 1], 100, 10), "0.0,10.0 100.0,10.0");
  assert.equal(line([1], 100, 10), "");
});

test("a loss that is no number leaves a gap", () => {
  assert.equal(line([2, null, 0], 100, 10), "0.0,0.0 100.0,10.0");
  assert.equal(line([null, null], 100, 10), "");
});

test("without a picture the canvas is as large as its masks, enlarged", () => {
  assert.deepEqual(sizeOf({ mask_size: [8, 12] }, null), [96, 64]);
  assert.deepEqual(sizeOf({}, null), [0, 0]);
  assert.deepEqual(sizeOf({}, { naturalWidth: 5, naturalHeight: 4 }), [5, 4]);
});
