/* The two passes of resample.c in AVX2's instructions.
 *
 * One instruction multiplies 16 numbers of 16 bits and adds the products of neighbours; eight numbers of 32 bits take
 * two. So a weight is its low 16 bits, with their sign, and 2^16 times the rest, and both have sums of their own. These
 * may wrap; what they make together does not.
 */
#include <cpuid.h>
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define INLINE_AVX2 AVX2 static inline __attribute__((always_inline))

/* Each group of weights becomes its four low halves and its four high ones, in the same memory. */
static void split(Axis *axis, size_t number)
{
    for (int32_t *group = axis->weights; group < axis->weights + number * axis->stride; group += GROUP) {
        int16_t halves[2 * GROUP];
        for (int k = 0; k < GROUP; k++) {
            halves[k] = (int16_t)group[k];
            halves[GROUP + k] = (int16_t)((group[k] - halves[k]) / (1 << 16));
        }
        memcpy(group, halves, sizeof halves);
    }
}

INLINE_AVX2 __m256i repeated8(const int32_t *values)
{
    return _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)values));
}

INLINE_AVX2 __m256i repeated4(const void *values)
{
    int32_t both;
    memcpy(&both, values, sizeof both);
    return _mm256_set1_epi32(both);
}

INLINE_AVX2 __m256i joined(__m256i low, __m256i high) { return _mm256_add_epi32(low, _mm256_slli_epi32(high, 16)); }

INLINE_AVX2 __m256i pair_sums(__m256i one, __m256i other)
{
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_hadd_epi32(one, other), _mm256_set1_epi32(HALF)), BITS);
}

INLINE_AVX2 void across_depth(const Work *work, size_t depth, const uint8_t *row, uint8_t *out)
{
    /* Where the bytes of four pixels go, each to 16 bits: four of red and four of green, four of blue. */
    const char d = (char)depth, none = -1;
    const __m256i places = _mm256_setr_epi8(
        0, none, d, none, 2 * d, none, 3 * d, none, 1, none, d + 1, none, 2 * d + 1, none, 3 * d + 1, none, 2, none,
        d + 2, none, 2 * d + 2, none, 3 * d + 2, none, none, none, none, none, none, none, none, none);
    /* Packed, the lower half has red and green of four pixels, the upper one blue and nothing. */
    const __m128i order = _mm_setr_epi8(0, 1, 8, 2, 3, 10, 4, 5, 12, 6, 7, 14, -1, -1, -1, -1);
    const __m256i zero = _mm256_setzero_si256();
    const Axis *axis = &work->horizontal;
    for (size_t x = 0; x < work->columns; x += 4) {
        size_t left = work->columns - x;
        const uint8_t *sources[4];
        const int32_t *weights[4];
        for (size_t i = 0; i < 4; i++) {
            size_t column = i < left ? x + i : x;
            sources[i] = row + (axis->first[column] - work->left) * depth;
            weights[i] = axis->weights + column * axis->stride;
        }
        /* Each has the sums of red, red, green, green, blue, blue, and two without meaning, to be added in pairs. */
        __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero}, sums[4];
        for (size_t group = 0; group < axis->groups; group++) {
            for (int i = 0; i < 4; i++) {
                const __m128i *source = (const __m128i *)(sources[i] + group * GROUP * depth);
                const int32_t *halves = weights[i] + group * GROUP;
                __m256i values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(source)), places);
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(values, repeated8(halves)));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(values, repeated8(halves + GROUP / 2)));
            }
        }
        for (int i = 0; i < 4; i++) sums[i] = joined(low[i], high[i]);
        __m256i words = _mm256_packs_epi32(pair_sums(sums[0], sums[1]), pair_sums(sums[2], sums[3]));
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        uint8_t pixels[16];
        _mm_storeu_si128((__m128i *)pixels, _mm_shuffle_epi8(_mm256_castsi256_si128(bytes), order));
        if (left < 4) memcpy(out + x * 3, pixels, left * 3);
        else memcpy(out + x * 3, pixels, 12);
    }
}

AVX2 static void across_avx2(const Work *work, const uint8_t *row, uint8_t *out)
{
    if (work->depth == 4) across_depth(work, 4, row, out);
    else across_depth(work, 3, row, out);
}

AVX2 static void down_avx2(const Work *work, size_t y, const uint8_t *rows, size_t step, size_t values, uint8_t *out)
{
    const Axis *axis = &work->vertical;
    const int16_t *weights = (const int16_t *)(axis->weights + y * axis->stride);
    const __m256i zero = _mm256_setzero_si256();
    size_t count = axis->count[y];
    rows += (axis->first[y] - work->top) * step;
    for (size_t start = 0; start < values; start += BLOCK) {
        /* The last block overlaps the one before. */
        size_t at = start + BLOCK <= values ? start : values - BLOCK;
        __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
        for (size_t k = 0; k < count; k += 2) {
            const uint8_t *source = rows + k * step + at, *next = k + 1 < count ? source + step : source;
            __m256i one = _mm256_loadu_si256((const __m256i *)source), other = _mm256_loadu_si256((const __m256i *)next);
            __m256i first = _mm256_unpacklo_epi8(one, other), second = _mm256_unpackhi_epi8(one, other);
            __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
            const int16_t *halves = weights + k / GROUP * 2 * GROUP + k % GROUP;
            __m256i low_weights = repeated4(halves), high_weights = repeated4(halves + GROUP);
            for (int i = 0; i < 4; i++) {
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], low_weights));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], high_weights));
            }
        }
        for (int i = 0; i < 4; i++) {
            __m256i sum = _mm256_add_epi32(joined(low[i], high[i]), _mm256_set1_epi32(HALF));
            low[i] = _mm256_srai_epi32(sum, BITS);
        }
        __m256i words = _mm256_packs_epi32(low[0], low[1]), more = _mm256_packs_epi32(low[2], low[3]);
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_packus_epi16(words, more));
    }
}

/* Not __builtin_cpu_supports: built by Zig's compiler, it returns 0 for all. */
static int has_avx2(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0)); /* whether the system keeps the wide registers */
    return (a & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}
