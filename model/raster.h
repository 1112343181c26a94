/* Rasters of pixels, and copies between them that mirror and turn pictures. */

/* Pixels of `depth` bytes, the first three of which are red, green and blue; `row` and `column` in bytes, either sign. */
typedef struct {
    uint8_t *bytes;
    ptrdiff_t row, column;
    size_t height, width, depth;
} Raster;

enum { SQUARE = 32, COLUMNS = 128 };

static uint8_t *pixel_at(const Raster *raster, size_t y, size_t x)
{
    return raster->bytes + (ptrdiff_t)y * raster->row + (ptrdiff_t)x * raster->column;
}

static void copy_each(const Raster *from, const Raster *to, size_t top, size_t bottom, size_t left, size_t right)
{
    for (size_t y = top; y < bottom; y++) {
        for (size_t x = left; x < right; x++) memcpy(pixel_at(to, y, x), pixel_at(from, y, x), 3);
    }
}

#ifdef __x86_64__

/* The columns of row y that were copied, from the left on. Pixels lie side by side in both, in `to` perhaps in reverse. */
AVX2 static size_t copy_row_avx2(const Raster *from, const Raster *to, size_t y)
{
    const char d = (char)from->depth, e = 2 * d, f = 3 * d;
    const __m128i forwards = _mm_setr_epi8(0, 1, 2, d, d + 1, d + 2, e, e + 1, e + 2, f, f + 1, f + 2, -1, -1, -1, -1);
    const __m128i backwards = _mm_setr_epi8(-1, -1, -1, -1, f, f + 1, f + 2, e, e + 1, e + 2, d, d + 1, d + 2, 0, 1, 2);
    /* Six pixels on, 16 bytes are within both rows. The four bytes too many are overwritten by what follows. */
    size_t end = from->width < 6 ? 0 : (from->width - 2) / 4 * 4;
    const uint8_t *source = pixel_at(from, y, 0);
    if (to->column > 0) {
        uint8_t *out = pixel_at(to, y, 0);
        for (size_t x = 0; x < end; x += 4, source += 4 * d, out += 12) {
            _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)source), forwards));
        }
    } else {
        uint8_t *out = pixel_at(to, y, 0) + 3 - 16;
        for (size_t x = 0; x < end; x += 4, source += 4 * d, out -= 12) {
            _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)source), backwards));
        }
    }
    return end;
}

/* Four rows from y on, of the columns left … right - 1, which are a multiple of four; a row here is a column of `to`, whose
 * pixels lie side by side, perhaps in reverse. Two more pixels of each row follow in `from`. */
AVX2 static void turn_avx2(const Raster *from, const Raster *to, size_t y, size_t left, size_t right)
{
    const char d = (char)from->depth, e = 2 * d, f = 3 * d, none = -1;
    const __m128i apart = _mm_setr_epi8(0, 1, 2, none, d, d + 1, d + 2, none, e, e + 1, e + 2, none, f, f + 1, f + 2, none);
    const __m128i together = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, none, none, none, none);
    int reverse = to->row < 0;
    ptrdiff_t step = reverse ? -from->row : from->row;
    const uint8_t *source = pixel_at(from, reverse ? y + 3 : y, left);
    uint8_t *out = pixel_at(to, reverse ? y + 3 : y, left);
    for (size_t x = left; x < right; x += 4, source += 4 * d) {
        __m128i rows[4], columns[4];
        for (int i = 0; i < 4; i++) {
            rows[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(source + i * step)), apart);
        }
        __m128i low = _mm_unpacklo_epi32(rows[0], rows[1]), next_low = _mm_unpacklo_epi32(rows[2], rows[3]);
        __m128i high = _mm_unpackhi_epi32(rows[0], rows[1]), next_high = _mm_unpackhi_epi32(rows[2], rows[3]);
        columns[0] = _mm_unpacklo_epi64(low, next_low);
        columns[1] = _mm_unpackhi_epi64(low, next_low);
        columns[2] = _mm_unpacklo_epi64(high, next_high);
        columns[3] = _mm_unpackhi_epi64(high, next_high);
        for (int i = 0; i < 4; i++, out += to->column) {
            __m128i pixels = _mm_shuffle_epi8(columns[i], together);
            int last = _mm_extract_epi32(pixels, 2);
            _mm_storel_epi64((__m128i *)out, pixels);
            memcpy(out + 8, &last, sizeof last);
        }
    }
}

#else
static size_t copy_row_avx2(const Raster *from, const Raster *to, size_t y) { return (void)from, (void)to, (void)y, 0; }
static void turn_avx2(const Raster *from, const Raster *to, size_t y, size_t left, size_t right)
{
    (void)from, (void)to, (void)y, (void)left, (void)right;
}
#endif

/* Copy red, green and blue of each pixel. `to` has three bytes a pixel, and may be a picture whose rows or columns are
 * in reverse order, or its transpose. The pixels of a row of `from` lie side by side. */
static void copy_pixels(const Raster *from, const Raster *to, int avx2)
{
    if (to->column == 3 && from->depth == 3) {
        for (size_t y = 0; y < from->height; y++) memcpy(pixel_at(to, y, 0), pixel_at(from, y, 0), 3 * from->width);
        return;
    }
    if (to->column == 3 || to->column == -3) {
        for (size_t y = 0; y < from->height; y++) {
            size_t done = avx2 ? copy_row_avx2(from, to, y) : 0;
            copy_each(from, to, y, y + 1, done, from->width);
        }
        return;
    }
    size_t wide = avx2 && (to->row == 3 || to->row == -3) && from->width >= 6 ? (from->width - 2) / 4 * 4 : 0;
    size_t whole = from->height / 4 * 4;
    for (size_t left = 0; left < wide; left += COLUMNS) {
        size_t right = left + COLUMNS < wide ? left + COLUMNS : wide;
        for (size_t y = 0; y < whole; y += 4) turn_avx2(from, to, y, left, right);
    }
    if (wide) {
        copy_each(from, to, 0, whole, wide, from->width);
        copy_each(from, to, whole, from->height, 0, from->width);
        return;
    }
    for (size_t top = 0; top < from->height; top += SQUARE) {
        size_t bottom = top + SQUARE < from->height ? top + SQUARE : from->height;
        for (size_t left = 0; left < from->width; left += SQUARE) {
            size_t right = left + SQUARE < from->width ? left + SQUARE : from->width;
            copy_each(from, to, top, bottom, left, right);
        }
    }
}
