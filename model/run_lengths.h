/* BMP's run lengths: pixels as indices of a palette, of 8 bits or of 4. */

enum { END_OF_ROW, END_OF_PICTURE, DELTA };

/* Decode `length` bytes into the indices of a picture, `count` of them in rows of `width`, which are 0 before. Returns
 * whether the runs fit into their rows and the bytes suffice. */
static int decode_run_lengths(const uint8_t *data, size_t length, int wide, size_t width, uint8_t *indices, size_t count)
{
    size_t at = 0, place = 0;
    int row_complete = 0; /* by the last run: then the end of the row that follows is the same one's */
    while (place < count) {
        if (length - at < 2) return 0;
        size_t run = data[at], value = data[at + 1], pixels = run ? run : value;
        at += 2;
        if (run || value > DELTA) {
            if (place % width + pixels > width) return 0;
            size_t stored = run ? 0 : wide ? pixels : (pixels + 1) / 2;
            if (length - at < stored) return 0;
            for (size_t i = 0; i < pixels; i++) {
                size_t two = run ? value : data[at + (wide ? i : i / 2)];
                indices[place + i] = (uint8_t)(wide ? two : i % 2 ? two & 15 : two >> 4);
            }
            at += stored + (stored & 1);
            if (at > length) at = length; /* the last one is not padded */
            place += pixels;
            row_complete = place % width == 0;
            continue;
        }
        if (value == END_OF_PICTURE) break;
        if (value == DELTA) {
            if (length - at < 2) return 0;
            place += data[at] + data[at + 1] * width;
            at += 2;
        } else if (!row_complete) {
            place += width - place % width;
        }
        row_complete = 0;
    }
    return 1;
}
