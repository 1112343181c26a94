/* OpenCV's bilinear resize of 8-bit pictures (INTER_LINEAR), to the same bit.
 *
 * Each value of the result is a weighted mean of two neighbours in a row, and of two rows of such means. Weights have 11
 * bits. What is left of a row's mean loses 4 bits, so that it fits in 16; each product with a row's weight loses 16. A
 * picture of exactly twice the height and width is averaged by squares of four pixels instead.
 */

enum { WEIGHT_BITS = 11, ONE = 1 << WEIGHT_BITS, KEPT_SHIFT = 4, LANES = 8, BEHIND = 16 * 4 + 16 };
/* `LANES`: results that are computed together. `BEHIND`: what may be read behind a row. */

/* The nearest integer of 0 to ONE, of two the even one: the sum has no bits for less. */
static int16_t nearest(float value)
{
    volatile float sum = value + 12582912.0f; /* 1.5 * 2^23 */
    return (int16_t)(sum - 12582912.0f);
}

/* Result i is made of the sources at[i] and at[i] + 1 of `length`, with the weights ONE - second[i] and second[i]. The
 * arithmetic is OpenCV's: positions are doubles, then floats. */
static void neighbours(size_t length, size_t number, ptrdiff_t *at, int16_t (*weights)[2])
{
    double scale = 1.0 / ((double)number / (double)length);
    for (size_t i = 0; i < number; i++) {
        float place = (float)(((double)i + 0.5) * scale - 0.5), whole = (float)(int)place;
        if (whole > place) whole -= 1.0f;
        float part = place - whole;
        at[i] = (ptrdiff_t)whole;
        weights[i][0] = nearest((1.0f - part) * ONE);
        weights[i][1] = nearest(part * ONE);
    }
}

/* A row of means of neighbours, without their lowest bits: four for each of `columns` pixels, the fourth without
 * meaning. `at` is in bytes. */
static void means_anywhere(const uint8_t *row, const ptrdiff_t *at, const int16_t (*weights)[2], size_t columns,
                           size_t depth, int16_t *restrict out)
{
    for (size_t x = 0; x < columns; x++) {
        const uint8_t *first = row + at[x], *second = first + depth;
        for (size_t c = 0; c < 3; c++) {
            out[4 * x + c] = (int16_t)((first[c] * weights[x][0] + second[c] * weights[x][1]) >> KEPT_SHIFT);
        }
    }
}

static uint8_t clipped(int value) { return (uint8_t)(value > 255 ? 255 : value); }

static void mixed_anywhere(const int16_t *upper, const int16_t *lower, const int16_t *weights, size_t columns,
                           uint8_t *restrict out)
{
    for (size_t x = 0; x < columns; x++) {
        for (size_t c = 0; c < 3; c++) {
            int sum = ((upper[4 * x + c] * weights[0]) >> 16) + ((lower[4 * x + c] * weights[1]) >> 16);
            out[3 * x + c] = clipped((sum + 2) >> 2);
        }
    }
}

static void halved_anywhere(const uint8_t *upper, const uint8_t *lower, size_t columns, size_t depth,
                            uint8_t *restrict out)
{
    for (size_t x = 0; x < columns; x++, upper += 2 * depth, lower += 2 * depth) {
        for (size_t c = 0; c < 3; c++) {
            out[3 * x + c] = (uint8_t)((upper[c] + upper[depth + c] + lower[c] + lower[depth + c] + 2) >> 2);
        }
    }
}

#ifdef __x86_64__

/* Eight pixels of four words each, in order across both, to eight of three bytes, of which `left` belong to the row. */
INLINE_AVX2 void store_pixels(__m256i first, __m256i second, size_t left, uint8_t *out)
{
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
    bytes = _mm256_shuffle_epi8(bytes, order);
    uint8_t some[4 * LANES];
    uint8_t *to = left < LANES + 2 ? some : out; /* the second store writes four bytes more */
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(bytes));
    _mm_storeu_si128((__m128i *)(to + 12), _mm256_extracti128_si256(bytes, 1));
    if (to == some) memcpy(out, some, 3 * (left < LANES ? left : LANES));
}

INLINE_AVX2 __m256i mean_pairs(const uint8_t *one, const uint8_t *other, __m256i places, const int16_t *weights)
{
    __m256i values = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)one)),
                                             _mm_loadl_epi64((const __m128i *)other), 1);
    __m256i sums = _mm256_madd_epi16(_mm256_shuffle_epi8(values, places),
                                     _mm256_loadu_si256((const __m256i *)weights));
    return _mm256_srai_epi32(sums, KEPT_SHIFT);
}

/* As means_anywhere(), for whole groups of four pixels. `spread` has both weights of a pixel four times, of each group
 * in the order 0, 2, 1, 3: packing exchanges the pixels in the middle. */
AVX2 static void means_avx2(const uint8_t *row, const ptrdiff_t *at, const int16_t *spread, size_t columns,
                            size_t depth, int16_t *out)
{
    const char d = (char)depth, none = -1;
    const __m256i places = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, none, d, none, 1, none, d + 1, none, 2, none, d + 2, none, none, none, none, none));
    for (size_t x = 0; x < columns; x += 4) {
        __m256i even = mean_pairs(row + at[x], row + at[x + 2], places, spread + 8 * x);
        __m256i odd = mean_pairs(row + at[x + 1], row + at[x + 3], places, spread + 8 * x + 16);
        _mm256_storeu_si256((__m256i *)(out + 4 * x), _mm256_packs_epi32(even, odd));
    }
}

INLINE_AVX2 __m256i mix(const int16_t *upper, const int16_t *lower, __m256i first, __m256i second)
{
    __m256i sum = _mm256_add_epi16(_mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)upper), first),
                                   _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)lower), second));
    return _mm256_srai_epi16(_mm256_add_epi16(sum, _mm256_set1_epi16(2)), 2);
}

AVX2 static void mixed_avx2(const int16_t *upper, const int16_t *lower, const int16_t *weights, size_t columns,
                            uint8_t *out)
{
    const __m256i first = _mm256_set1_epi16(weights[0]), second = _mm256_set1_epi16(weights[1]);
    for (size_t x = 0; x < columns; x += LANES) {
        __m256i low = mix(upper + 4 * x, lower + 4 * x, first, second);
        __m256i high = mix(upper + 4 * x + 16, lower + 4 * x + 16, first, second);
        store_pixels(low, high, columns - x, out + 3 * x);
    }
}

INLINE_AVX2 __m256i square_means(const uint8_t *upper, const uint8_t *lower, size_t depth, __m256i places)
{
    __m256i sum = _mm256_set1_epi16(2);
    for (int i = 0; i < 2; i++, upper = lower) {
        __m256i four = _mm256_loadu2_m128i((const __m128i *)(upper + 4 * depth), (const __m128i *)upper);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_shuffle_epi8(four, places), _mm256_set1_epi8(1)));
    }
    return _mm256_srli_epi16(sum, 2);
}

AVX2 static void halved_avx2(const uint8_t *upper, const uint8_t *lower, size_t columns, size_t depth, uint8_t *out)
{
    const char d = (char)depth, e = 2 * d, f = 3 * d, none = -1;
    const __m256i places = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, d, 1, d + 1, 2, d + 2, none, none, e, f, e + 1, f + 1, e + 2, f + 2, none, none));
    for (size_t x = 0; x < columns; x += LANES, upper += 16 * depth, lower += 16 * depth) {
        store_pixels(square_means(upper, lower, depth, places),
                     square_means(upper + 8 * depth, lower + 8 * depth, depth, places), columns - x, out + 3 * x);
    }
}
#else
static void means_avx2(const uint8_t *row, const ptrdiff_t *at, const int16_t *spread, size_t columns, size_t depth,
                       int16_t *out)
{
    (void)row, (void)at, (void)spread, (void)columns, (void)depth, (void)out;
}
#define mixed_avx2 mixed_anywhere
#define halved_avx2 halved_anywhere
#endif

/* Row y, or a copy of it in `line` where too few bytes follow it in memory. */
static const uint8_t *readable(const Raster *from, size_t y, const uint8_t *end, uint8_t *line)
{
    const uint8_t *row = from->bytes + (ptrdiff_t)y * from->row;
    size_t bytes = from->width * from->depth;
    return (size_t)(end - row) >= bytes + BEHIND ? row : memcpy(line, row, bytes);
}

static void halve(const Raster *from, const Raster *to, const uint8_t *end, uint8_t *lines, size_t line)
{
    for (size_t y = 0; y < to->height; y++) {
        const uint8_t *upper = readable(from, 2 * y, end, lines), *lower = readable(from, 2 * y + 1, end, lines + line);
        uint8_t *out = to->bytes + (ptrdiff_t)y * to->row;
        if (avx2 && to->width >= LANES) halved_avx2(upper, lower, to->width, from->depth, out);
        else halved_anywhere(upper, lower, to->width, from->depth, out);
    }
}

static size_t within(ptrdiff_t place, size_t length)
{
    return place < 0 ? 0 : (size_t)place < length ? (size_t)place : length - 1;
}

/* Resize `from` to the size of `to`. Rows of both have pixels side by side, and rows of `from` rising addresses. Needs no
 * GIL. Returns 0 where memory is lacking. */
static int bilinear(const Raster *from, const Raster *to)
{
    const uint8_t *end = from->bytes + (ptrdiff_t)(from->height - 1) * from->row + from->width * from->depth;
    size_t line = from->width * from->depth + BEHIND, columns = (to->width + LANES - 1) / LANES * LANES;
    size_t indices = (columns + to->height) * sizeof(ptrdiff_t);
    size_t words = columns * (2 + 8 + 2 * 4) + to->height * 2;
    char *room = calloc(1, indices + words * sizeof(int16_t) + 2 * line), *at = room;
    if (room == NULL) return 0;
    ptrdiff_t *left = carve(&at, columns, sizeof *left), *top = carve(&at, to->height, sizeof *top);
    int16_t(*across)[2] = carve(&at, columns, sizeof *across), (*down)[2] = carve(&at, to->height, sizeof *down);
    int16_t *spread = carve(&at, 8 * columns, sizeof *spread);
    int16_t *rows[2] = {carve(&at, 4 * columns, sizeof *rows[0]), carve(&at, 4 * columns, sizeof *rows[1])};
    uint8_t *lines = carve(&at, 2 * line, 1);
    if (from->height == 2 * to->height && from->width == 2 * to->width) {
        halve(from, to, end, lines, line);
        free(room);
        return 1;
    }
    neighbours(from->width, to->width, left, across);
    neighbours(from->height, to->height, top, down);
    for (size_t x = 0; x < to->width; x++) {
        if (left[x] < 0 || left[x] >= (ptrdiff_t)from->width - 1) { /* beyond the border its pixel alone counts */
            across[x][0] = ONE;
            across[x][1] = 0;
        }
        left[x] = (ptrdiff_t)(within(left[x], from->width) * from->depth);
        for (size_t k = 0; k < 8; k++) {
            size_t place = (x & ~(size_t)3) + (x & 1) * 2 + (x >> 1 & 1);
            spread[8 * place + k] = across[x][k & 1];
        }
    }
    int wide = avx2 && to->width >= LANES;
    size_t held[2] = {from->height, from->height}; /* the sources of `rows`; none */
    for (size_t y = 0; y < to->height; y++) {
        size_t needed[2] = {within(top[y], from->height), within(top[y] + 1, from->height)};
        if (held[1] == needed[0]) {
            int16_t *row = rows[0];
            size_t other = held[0];
            rows[0] = rows[1], rows[1] = row;
            held[0] = held[1], held[1] = other;
        }
        for (int i = 0; i < 2; i++) {
            if (held[i] == needed[i]) continue;
            held[i] = needed[i];
            if (i == 1 && needed[0] == needed[1]) {
                memcpy(rows[1], rows[0], 4 * columns * sizeof *rows[0]);
                continue;
            }
            const uint8_t *row = readable(from, needed[i], end, lines);
            if (wide) means_avx2(row, left, spread, columns, from->depth, rows[i]);
            else means_anywhere(row, left, (const int16_t(*)[2])across, to->width, from->depth, rows[i]);
        }
        uint8_t *out = to->bytes + (ptrdiff_t)y * to->row;
        if (wide) mixed_avx2(rows[0], rows[1], down[y], to->width, out);
        else mixed_anywhere(rows[0], rows[1], down[y], to->width, out);
    }
    free(room);
    return 1;
}
