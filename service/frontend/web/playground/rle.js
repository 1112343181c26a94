// COCO's compressed run-length encoding, decoded straight to the size on the screen.

/** Lengths of the runs of 0 and 1, in turn, down the columns. */
export function runs(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = counts.charCodeAt(at++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

/**
 * Set the pixels of a mask of `size` [height, width] to `value` in `pixels` of `width` × `height`, row by row. Each pixel
 * shows the nearest one of the mask.
 */
export function fillMask(pixels, width, height, { size: [sourceHeight, sourceWidth], counts }, value) {
  const firstAtOrBelow = (y) => Math.ceil((y * height) / sourceHeight - 0.5);
  const lengths = runs(counts);
  let run = 0;
  let end = lengths[0]; // of the run, in pixels down the columns
  for (let x = 0; x < width; x++) {
    const start = Math.min(sourceWidth - 1, Math.floor(((x + 0.5) * sourceWidth) / width)) * sourceHeight;
    const stop = start + sourceHeight;
    while (run > 0 && end - lengths[run] > start) end -= lengths[run--];
    for (let from = start; from < stop; from = end) {
      while (end <= from) end += lengths[++run];
      if (run % 2 === 0) continue;
      const last = Math.min(height, firstAtOrBelow(Math.min(end, stop) - start)) * width;
      for (let at = firstAtOrBelow(from - start) * width + x; at < last; at += width) pixels[at] = value;
    }
  }
}
