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

/** A mask of `size` [height, width] as bytes 0 or 1 of `width` × `height`, row by row; each pixel is the nearest one. */
export function maskPixels({ size: [sourceHeight, sourceWidth], counts }, width, height) {
  const pixels = new Uint8Array(width * height);
  const sourceColumn = (x) => Math.min(sourceWidth - 1, Math.floor(((x + 0.5) * sourceWidth) / width));
  const firstAtOrBelow = (y) => Math.max(0, Math.ceil((y * height) / sourceHeight - 0.5));
  // The columns of the screen that show a column of the mask are neighbours.
  const shownFrom = new Int32Array(sourceWidth).fill(-1);
  const shownTo = new Int32Array(sourceWidth).fill(-1);
  for (let x = 0; x < width; x++) {
    const column = sourceColumn(x);
    if (shownFrom[column] < 0) shownFrom[column] = x;
    shownTo[column] = x;
  }
  let position = 0;
  runs(counts).forEach((length, at) => {
    const end = position + length;
    while (at % 2 && position < end) {
      const column = Math.floor(position / sourceHeight);
      const top = position - column * sourceHeight;
      const bottom = Math.min(sourceHeight, top + end - position);
      if (shownFrom[column] >= 0) {
        const [from, to] = [firstAtOrBelow(top), Math.min(height, firstAtOrBelow(bottom))];
        for (let x = shownFrom[column]; x <= shownTo[column]; x++) {
          for (let y = from; y < to; y++) pixels[y * width + x] = 1;
        }
      }
      position += bottom - top;
    }
    position = end;
  });
  return pixels;
}
