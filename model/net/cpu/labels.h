/* The class of each pixel of a picture, from a segmenter's coarse logits, in one pass over the picture: two bilinear
 * resizes, the highest logit, and its probability. Part of kernels.c.
 *
 * Only some rows are in memory besides the labels. A pixel is computed the same way wherever the rows are divided.
 */
enum { FEW_CLASSES = 16, MOST_CLASSES = 256 };
#define LEAST_SHARE_LOG -30.0f /* logits so far below the highest add nothing to a float32 sum of 256 terms */

/* Linear interpolation: number i is (1 - weight[i]) x[low[i]] + weight[i] x[high[i]]. */
typedef struct {
    const int32_t *low, *high;
    const float *weight;
} Axis;

typedef struct {
    const float *logits; /* (height, width, stride): of each place those of `classes`, then at most 15 of -1e30 */
    size_t width, classes, stride;
    Axis input_rows, input_columns; /* logits → the network's input; low and high of columns are multiples of stride */
    size_t input_width;
    Axis rows, columns; /* input → picture, likewise */
    size_t picture_width;
    uint8_t *labels, *levels; /* (rows, picture_width); levels, round(255 * probability), may be NULL */
    const float *odds;        /* by class, or NULL: 1 / probability - 1 is multiplied by them */
    int64_t *counts;          /* by class: pixels, and their probabilities' sum */
    double *sums;
} Labelling;

INLINE __m512 between(const float *low, const float *high, __m512 weight, size_t left)
{
    __m512 rest = _mm512_mul_ps(load_floats(low, left), _mm512_sub_ps(_mm512_set1_ps(1.0f), weight));
    return _mm512_fmadd_ps(load_floats(high, left), weight, rest);
}

/* Writes up to 15 numbers more than `count`. */
INLINE void between_all(const float *low, const float *high, float weight, float *to, size_t count)
{
    FOR_VECTORS(at, count, left,
                { _mm512_storeu_ps(to + at, between(low + at, high + at, _mm512_set1_ps(weight), left)); });
}

/* Rows of the network's input. The last two are kept, because a picture has several rows between them. */
typedef struct {
    float *row[2], *logits;
    long of[2];
} InputRows;

AVX512 static const float *input_row(const Labelling *job, InputRows *rows, int32_t index)
{
    if (rows->of[0] == index) return rows->row[0];
    if (rows->of[1] == index) return rows->row[1];
    int oldest = rows->of[1] < rows->of[0];
    const Axis *down = &job->input_rows, *across = &job->input_columns;
    size_t pitch = job->width * job->stride;
    between_all(job->logits + (size_t)down->low[index] * pitch, job->logits + (size_t)down->high[index] * pitch,
                down->weight[index], rows->logits, pitch);
    float *to = rows->row[oldest];
    for (size_t x = 0; x < job->input_width; x++)
        between_all(rows->logits + across->low[x], rows->logits + across->high[x], across->weight[x],
                    to + x * job->stride, job->stride);
    rows->of[oldest] = index;
    return to;
}

/* Numbers that make an answer invalid: NaN and infinity; of the lesser logits NaN and +infinity. */
enum { NOT_A_NUMBER = 0x81, PLUS_INFINITY = 0x08, MINUS_INFINITY = 0x10 };

/* Sixteen pixels at a time, class after class. Returns whether all highest logits are finite. */
AVX512 static int label_by_pixels(const Labelling *job, const float *row, uint8_t *labels, uint8_t *levels,
                                  __m512d *sums)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __mmask16 invalid = 0;
    FOR_VECTORS(at, job->picture_width, left, {
        __mmask16 mask = mask_of(left);
        __m512i low = _mm512_maskz_loadu_epi32(mask, job->columns.low + at);
        __m512i high = _mm512_maskz_loadu_epi32(mask, job->columns.high + at);
        __m512 weight = load_floats(job->columns.weight + at, left);
        __m512 rest = _mm512_sub_ps(one, weight);
        __m512 scores[FEW_CLASSES];
        __m512 best = _mm512_set1_ps(-INFINITY);
        __m512i label = _mm512_setzero_si512();
        for (size_t of = 0; of < job->classes; of++) {
            __m512 score = _mm512_mul_ps(_mm512_i32gather_ps(low, row + of, 4), rest);
            score = _mm512_fmadd_ps(_mm512_i32gather_ps(high, row + of, 4), weight, score);
            invalid |= _mm512_mask_fpclass_ps_mask(mask, score, NOT_A_NUMBER | PLUS_INFINITY);
            /* Strictly greater, so that of equal logits the lowest class wins. */
            __mmask16 higher = _mm512_cmp_ps_mask(score, best, _CMP_GT_OQ);
            best = _mm512_mask_mov_ps(best, higher, score);
            label = _mm512_mask_set1_epi32(label, higher, (int)of);
            scores[of] = score;
        }
        invalid |= _mm512_mask_fpclass_ps_mask(mask, best, MINUS_INFINITY);
        __m512 total = _mm512_setzero_ps();
        for (size_t of = 0; of < job->classes; of++)
            total = _mm512_add_ps(total, exp_of(_mm512_sub_ps(scores[of], best)));
        if (job->odds) {
            __m512 odds = _mm512_i32gather_ps(label, job->odds, 4);
            total = _mm512_fmadd_ps(_mm512_sub_ps(total, one), odds, one);
        }
        __m512 probability = _mm512_div_ps(one, total);
        store_narrow(labels + at, left, label);
        if (levels) {
            __m512 level = _mm512_mul_ps(probability, _mm512_set1_ps(255.0f));
            store_narrow(levels + at, left, _mm512_cvtps_epi32(level));
        }
        for (size_t of = 0; of < job->classes; of++) {
            __mmask16 chosen = _mm512_mask_cmpeq_epi32_mask(mask, label, _mm512_set1_epi32((int)of));
            if (!chosen) continue;
            __m512 own = _mm512_maskz_mov_ps(chosen, probability);
            job->counts[of] += __builtin_popcount(chosen);
            sums[of] = _mm512_add_pd(sums[of], _mm512_cvtps_pd(_mm512_castps512_ps256(own)));
            sums[of] = _mm512_add_pd(sums[of], _mm512_cvtps_pd(_mm512_extractf32x8_ps(own, 1)));
        }
    });
    return !invalid;
}

/* Sixteen classes at a time, pixel after pixel. Returns whether all highest logits are finite. */
AVX512 static int label_by_classes(const Labelling *job, const float *row, uint8_t *labels, uint8_t *levels)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float scores[MOST_CLASSES];
    int finite = 1;
    for (size_t x = 0; x < job->picture_width; x++) {
        const float *low = row + job->columns.low[x], *high = row + job->columns.high[x];
        __m512 weight = _mm512_set1_ps(job->columns.weight[x]), best = _mm512_set1_ps(-INFINITY);
        __m512i block = _mm512_setzero_si512();
        __mmask16 invalid = 0;
        for (size_t at = 0; at < job->stride; at += WIDTH) {
            __m512 score = between(low + at, high + at, weight, WIDTH);
            invalid |= _mm512_fpclass_ps_mask(score, NOT_A_NUMBER | PLUS_INFINITY);
            __mmask16 higher = _mm512_cmp_ps_mask(score, best, _CMP_GT_OQ);
            best = _mm512_mask_mov_ps(best, higher, score);
            block = _mm512_mask_set1_epi32(block, higher, (int)at);
            _mm512_storeu_ps(scores + at, score);
        }
        __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(best));
        __mmask16 highest = _mm512_cmp_ps_mask(best, top, _CMP_EQ_OQ);
        /* Of equal logits the lowest class wins. */
        size_t label = (size_t)_mm512_mask_reduce_min_epi32(highest, _mm512_add_epi32(block, lanes));
        if (invalid || label >= job->classes) {
            finite = 0;
            label = 0;
        }
        __m512 sum = _mm512_setzero_ps();
        for (size_t at = 0; at < job->stride; at += WIDTH) {
            __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + at), top);
            if (_mm512_cmp_ps_mask(below, _mm512_set1_ps(LEAST_SHARE_LOG), _CMP_GT_OQ)) {
                sum = _mm512_add_ps(sum, exp_of(below));
            }
        }
        float total = _mm512_reduce_add_ps(sum);
        if (job->odds) total = (total - 1.0f) * job->odds[label] + 1.0f;
        float probability = 1.0f / total;
        labels[x] = (uint8_t)label;
        if (levels) levels[x] = (uint8_t)_mm_cvtss_si32(_mm_set_ss(probability * 255.0f));
        job->counts[label]++;
        job->sums[label] += (double)probability;
    }
    return finite;
}

/* Label the picture's rows from `first` to `last`. 1: done; 0: a highest logit is not finite; -1: no memory. */
AVX512 static int label_rows(const Labelling *job, size_t first, size_t last)
{
    size_t input = job->input_width * job->stride + WIDTH, coarse = job->width * job->stride + WIDTH;
    float *memory = malloc((3 * input + coarse) * sizeof(float));
    if (!memory) return -1;
    InputRows rows = {{memory, memory + input}, memory + 3 * input, {-1, -1}};
    float *row = memory + 2 * input;
    __m512d sums[FEW_CLASSES];
    for (size_t of = 0; of < FEW_CLASSES; of++) sums[of] = _mm512_setzero_pd();
    int finite = 1;
    for (size_t y = first; y < last; y++) {
        const float *low = input_row(job, &rows, job->rows.low[y]), *high = input_row(job, &rows, job->rows.high[y]);
        between_all(low, high, job->rows.weight[y], row, job->input_width * job->stride);
        uint8_t *labels = job->labels + y * job->picture_width;
        uint8_t *levels = job->levels ? job->levels + y * job->picture_width : NULL;
        finite &= job->classes <= FEW_CLASSES ? label_by_pixels(job, row, labels, levels, sums)
                                              : label_by_classes(job, row, labels, levels);
    }
    for (size_t of = 0; of < FEW_CLASSES && of < job->classes; of++) job->sums[of] += _mm512_reduce_add_pd(sums[of]);
    free(memory);
    return finite;
}
