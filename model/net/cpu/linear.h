/* Linear layers with what follows them, in one pass: GELU, rounding to bytes, residual. Part of kernels.c.
 *
 * Products are of uint8 inputs and int8 weights, summed exactly in int32 (VNNI), or of bfloat16, summed in float32. A sum
 * becomes the output while it is in the first cache. Outputs of a row do not depend on the other rows.
 */
enum { TILE_ROWS = 6, TILE_COLUMNS = 64, BLOCK_ROWS = 16 * TILE_ROWS };

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")))
#define VNNI_INLINE static inline __attribute__((always_inline)) VNNI

/* A layer from C inputs to D outputs. `weight` has, for each 64 outputs, their weights of four bytes of a row at a time:
 * int8 (D / 64, C / 4, 64, 4) or bfloat16 (D / 64, C / 2, 64, 2). A sum of bytes becomes (sum + start) * scale + bias,
 * where `start` takes off the input's zero point; one of bfloat16 becomes sum + bias. */
typedef struct {
    const uint8_t *weight;
    const int32_t *start;
    const float *scale, *bias;
    size_t in_bytes, out;
} Linear;

typedef enum { PLAIN, RELU, GELU, GELU_TO_BYTES, ADD_RESIDUAL } Finish;

/* Where the outputs of a block of rows go, and the residual that is added. */
typedef struct {
    BFloat16 *halves;
    uint8_t *as_bytes;
    Bytes bytes;
    const BFloat16 *residual;
} Output;

/* x * Phi(x), with an error below 5e-5: Phi(x) - 1/2 is x * P(x * x), cut where it reaches 1/2. P has the least largest
 * error. */
VNNI_INLINE __m512 gelu_of(__m512 x)
{
    __m512 cut = _mm512_range_ps(x, _mm512_set1_ps(4.4f), 2); /* the lesser magnitude, with the sign of x */
    __m512 square = _mm512_mul_ps(cut, cut), sum = _mm512_set1_ps(3.56941426e-11f);
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-3.75403614e-09f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(1.74084271e-07f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-4.72485937e-06f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(8.42929177e-05f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-1.05499186e-03f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(9.64302572e-03f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(-6.60764262e-02f));
    sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(3.98761607e-01f));
    return _mm512_mul_ps(x, _mm512_fmadd_ps(cut, sum, _mm512_set1_ps(0.5f)));
}

VNNI_INLINE __m512i product(__m512i sum, __m512i inputs, __m512i weights, int halves)
{
    if (!halves) return _mm512_dpbusd_epi32(sum, inputs, weights);
    return _mm512_castps_si512(
        _mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)inputs, (__m512bh)weights));
}

/* Sums of up to six rows, of 64 outputs each, from the weights of these outputs on. Their number is known at compile
 * time, and they are written out by macros: GCC keeps arrays of vectors in memory. */
VNNI_INLINE void multiply(const uint8_t *from, const size_t rows, size_t row_bytes, const uint8_t *weight,
                          const int32_t *start, const int halves, int32_t sums[TILE_ROWS * TILE_COLUMNS])
{
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define START(row)                                                                                                     \
    __m512i a##row = halves ? _mm512_setzero_si512() : _mm512_loadu_si512(start);                                      \
    __m512i b##row = halves ? _mm512_setzero_si512() : _mm512_loadu_si512(start + WIDTH);                              \
    __m512i c##row = halves ? _mm512_setzero_si512() : _mm512_loadu_si512(start + 2 * WIDTH);                          \
    __m512i d##row = halves ? _mm512_setzero_si512() : _mm512_loadu_si512(start + 3 * WIDTH);
#define ADD(row)                                                                                                       \
    if (row < rows) {                                                                                                  \
        int32_t four;                                                                                                  \
        __builtin_memcpy(&four, from + row * row_bytes + at, 4);                                                       \
        __m512i inputs = _mm512_set1_epi32(four);                                                                      \
        a##row = product(a##row, inputs, a, halves);                                                                   \
        b##row = product(b##row, inputs, b, halves);                                                                   \
        c##row = product(c##row, inputs, c, halves);                                                                   \
        d##row = product(d##row, inputs, d, halves);                                                                   \
    }
#define KEEP(row)                                                                                                      \
    if (row < rows) {                                                                                                  \
        int32_t *to = sums + row * TILE_COLUMNS;                                                                       \
        _mm512_store_si512(to, a##row);                                                                                \
        _mm512_store_si512(to + WIDTH, b##row);                                                                        \
        _mm512_store_si512(to + 2 * WIDTH, c##row);                                                                    \
        _mm512_store_si512(to + 3 * WIDTH, d##row);                                                                    \
    }
    EACH_ROW(START)
    for (size_t at = 0; at < row_bytes; at += 4, weight += 4 * TILE_COLUMNS) {
        __m512i a = _mm512_loadu_si512(weight), b = _mm512_loadu_si512(weight + 64);
        __m512i c = _mm512_loadu_si512(weight + 128), d = _mm512_loadu_si512(weight + 192);
        EACH_ROW(ADD)
    }
    EACH_ROW(KEEP)
    /* The sums are read from memory, so that the loop above has all registers. */
    __asm__ volatile("" ::: "memory");
#undef EACH_ROW
#undef START
#undef ADD
#undef KEEP
}

/* 64 outputs of up to six rows, from `column` on; `first` is the number of the first row in its block. */
VNNI_INLINE void tile(const Linear *layer, const uint8_t *from, size_t first, const size_t rows, size_t column,
                      Output output, const int halves, const Finish finish)
{
    _Alignas(64) int32_t sums[TILE_ROWS * TILE_COLUMNS];
    multiply(from + first * layer->in_bytes, rows, layer->in_bytes, layer->weight + column * layer->in_bytes,
             halves ? NULL : layer->start + column, halves, sums);
    const __m512 per_step = _mm512_set1_ps(output.bytes.per_step), zero = _mm512_set1_ps((float)output.bytes.zero);
    for (size_t at = 0; at < TILE_COLUMNS; at += WIDTH) {
        __m512 bias = _mm512_loadu_ps(layer->bias + column + at);
        __m512 scale = halves ? _mm512_setzero_ps() : _mm512_loadu_ps(layer->scale + column + at);
        for (size_t row = 0; row < rows; row++) {
            __m512i sum = _mm512_load_si512(sums + row * TILE_COLUMNS + at);
            __m512 x = halves ? _mm512_add_ps(_mm512_castsi512_ps(sum), bias)
                              : _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, bias);
            size_t place = (first + row) * layer->out + column + at;
            if (finish == GELU || finish == GELU_TO_BYTES) x = gelu_of(x);
            if (finish == RELU) x = _mm512_max_ps(_mm512_setzero_ps(), x); /* NaN, the second, stays */
            if (finish == ADD_RESIDUAL) x = _mm512_add_ps(x, load(output.residual + place, WIDTH));
            if (finish == GELU_TO_BYTES) {
                __m512i steps = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, per_step, zero));
                _mm_storeu_si128((__m128i *)(output.as_bytes + place),
                                 _mm512_cvtusepi32_epi8(_mm512_max_epi32(steps, _mm512_setzero_si512())));
            } else {
                store(output.halves + place, WIDTH, x);
            }
        }
    }
}

/* A block of rows. The weights of 64 outputs stay in the first cache while all rows pass them. */
VNNI_INLINE void linear_rows(const Linear *layer, const uint8_t *from, size_t rows, Output output, const int halves,
                             const Finish finish)
{
#define TILE(count) tile(layer, from, row, count, column, output, halves, finish)
    for (size_t column = 0; column < layer->out; column += TILE_COLUMNS) {
        size_t row = 0;
        for (; row + TILE_ROWS <= rows; row += TILE_ROWS) TILE(TILE_ROWS);
        switch (rows - row) {
        case 5: TILE(5); break;
        case 4: TILE(4); break;
        case 3: TILE(3); break;
        case 2: TILE(2); break;
        case 1: TILE(1); break;
        }
    }
#undef TILE
}

VNNI static void halves_plain(const Linear *layer, const uint8_t *from, size_t rows, Output output)
{
    linear_rows(layer, from, rows, output, 1, PLAIN);
}

VNNI static void halves_relu(const Linear *layer, const uint8_t *from, size_t rows, Output output)
{
    linear_rows(layer, from, rows, output, 1, RELU);
}

VNNI static void halves_gelu(const Linear *layer, const uint8_t *from, size_t rows, Output output)
{
    linear_rows(layer, from, rows, output, 1, GELU);
}

VNNI static void halves_residual(const Linear *layer, const uint8_t *from, size_t rows, Output output)
{
    linear_rows(layer, from, rows, output, 1, ADD_RESIDUAL);
}

/* What the threads of a call share. Each takes one block of rows after the other. */
typedef struct {
    const uint8_t *x;
    size_t rows, block, next_block, next_thread;
    Linear first, second;
    Finish finish;  /* of a layer alone */
    Output output;
    uint8_t *between; /* of two layers: for each thread room for BLOCK_ROWS rows of the first's outputs */
} Work;

static int next_rows(Work *work, size_t *first, size_t *count)
{
    *first = __atomic_fetch_add(&work->next_block, 1, __ATOMIC_RELAXED) * work->block;
    if (*first >= work->rows) return 0;
    *count = work->rows - *first < work->block ? work->rows - *first : work->block;
    return 1;
}

static Output output_of(const Work *work, size_t place)
{
    return (Output){.halves = work->output.halves + place,
                    .residual = work->output.residual ? work->output.residual + place : NULL};
}

/* One layer of bfloat16. */
static void linear(void *shared)
{
    Work *work = shared;
    size_t row, count;
    while (next_rows(work, &row, &count)) {
        const uint8_t *from = work->x + row * work->first.in_bytes;
        Output output = output_of(work, row * work->first.out);
        switch (work->finish) {
        case RELU: halves_relu(&work->first, from, count, output); break;
        case GELU: halves_gelu(&work->first, from, count, output); break;
        case ADD_RESIDUAL: halves_residual(&work->first, from, count, output); break;
        default: halves_plain(&work->first, from, count, output);
        }
    }
}

/* Two layers of bytes: residual + second(bytes(GELU(first(x)))). */
VNNI static void channel_mlp(void *shared)
{
    Work *work = shared;
    size_t row, count, thread = __atomic_fetch_add(&work->next_thread, 1, __ATOMIC_RELAXED);
    uint8_t *between = work->between + thread * BLOCK_ROWS * work->first.out;
    while (next_rows(work, &row, &count)) {
        linear_rows(&work->first, work->x + row * work->first.in_bytes, count,
                    (Output){.as_bytes = between, .bytes = work->output.bytes}, 0, GELU_TO_BYTES);
        linear_rows(&work->second, between, count, output_of(work, row * work->second.out), 0, ADD_RESIDUAL);
    }
}

/* OpenMP's way to run a function in so many threads: torch's threads, if it is the function of torch's library. */
typedef void (*Parallel)(void (*function)(void *), void *shared, unsigned threads, unsigned flags);

static int run(void (*function)(void *), Work *work, Parallel parallel, size_t threads, size_t between_bytes)
{
    if (!parallel || threads < 1) threads = 1;
    size_t share = (work->rows + threads - 1) / threads;
    share = (share + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    work->block = share < BLOCK_ROWS ? share : BLOCK_ROWS;
    if (between_bytes && !(work->between = malloc(threads * BLOCK_ROWS * between_bytes))) return 0;
    if (threads > 1) parallel(function, work, (unsigned)threads, 0);
    else function(work);
    free(work->between);
    return 1;
}
